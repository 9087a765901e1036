// What a run reaches against what it costs; and, of dialogues, new style against old knowledge.

const COSTS = ["total_seconds", "peak_memory_bytes", "trainable_parameters"];
const GAINS = ["test_accuracy", "test_macro_f1", "test_loss", "general_loss", "validation_accuracy", "validation_loss", "validation_macro_f1",
  "test_bleu4", "test_rougel", "test_spearman", "test_pearson", "test_mse"];
const CHOSEN = { dataset: null, gain: null, styleDataset: null }; // in the two views below

/** Return whether a value can be drawn. */
function isNumber(value) {
  return typeof value === "number";
}

/** Return the data sets of the runs with how many they are, the most frequent first. */
function datasetsOf(runs) {
  const counts = new Map();
  for (const run of runs) counts.set(String(valueOf(run, "dataset")), (counts.get(String(valueOf(run, "dataset"))) ?? 0) + 1);
  return [...counts].sort((one, two) => two[1] - one[1]);
}

/** Return a <select> of data sets. */
function datasetChoice(datasets, value, changed) {
  return choice("Data set", datasets.map(([name, n]) => [name, `${name} (${n})`]), value, changed);
}

/** Return the rows that no other beats in both: less cost, more gain. The cheapest is first. */
function paretoFront(points, moreIsBetterHere) {
  const better = (a, b) => (moreIsBetterHere ? a > b : a < b);
  const ordered = [...points].sort((one, two) => one.x - two.x || (better(one.y, two.y) ? -1 : 1));
  const front = [];
  for (const point of ordered) if (!front.length || better(point.y, front.at(-1).y)) front.push(point);
  return front;
}

/** Return a colour and a shape for each method of the runs. There are 8 × 8, and the first 8 differ in both. */
function methodLooks(runs) {
  const methods = [...new Set(runs.map((run) => String(valueOf(run, "method"))))].sort();
  return new Map(methods.map((method, i) => [method, {
    colour: COLOUR_NAMES[i % 8], shape: SHAPE_NAMES[(i + Math.floor(i / 8) * 3) % 8],
  }]));
}

/** Return what stands beside the pointer on a row's mark. */
function tipOf(row, keys) {
  const first = row.runs[0];
  const lines = [cellOf(row, "name").text, `${valueOf(first, "method")}, ${valueOf(first, "model")}, seed ${cellOf(row, "seed").text}`];
  if (first.differs) lines.push(first.differs);
  return [...lines, ...keys.map((key) => `${titleOf(key)}: ${cellOf(row, key).text}`)].join("\n");
}

/** Return a row's mark as a link to its run; a ring shows that the row is selected. */
function dot(row, x, y, keys, symbol) {
  const chosen = row.runs.some((run) => STATE.selected.has(run.number));
  const text = tipOf(row, keys);
  return draw("a", {
    href: addressOf(row.runs[0]), tabindex: -1, "aria-label": text, // the table beside the plot is in the order of Tab
    onpointermove: (event) => tip(text, event), onpointerleave: () => tip(""),
  }, chosen ? draw("circle", { class: "picked", cx: x, cy: y, r: 11 }) : null, symbol);
}

/** Return a plot of a gain against a cost, with the Pareto front and a list of it. */
function tradeoff(rows, cost, gain, looks) {
  const points = rows
    .map((row) => ({ row, x: cellOf(row, cost).value, y: cellOf(row, gain).value, std: cellOf(row, gain).std }))
    .filter((point) => isNumber(point.x) && isNumber(point.y));
  if (!points.length) return null;
  const [across, up] = [unitOf(cost).factor, unitOf(gain).factor];
  const front = paretoFront(points, moreIsBetter(gain));
  const { svg, x, y } = axes(420, 320,
    { values: points.map((point) => point.x * across), text: titleOf(cost), log: true },
    { values: points.flatMap(({ y, std }) => [y - (std ?? 0), y + (std ?? 0)].map((value) => value * up)), text: titleOf(gain) },
    `${titleOf(gain)} against ${titleOf(cost)}, ${points.length} marks`);
  const place = (point) => [x(point.x * across), y(point.y * up)];
  const steps = front.map((point, i) => (i ? `H${place(point)[0]}V${place(point)[1]}` : `M${place(point).join(" ")}`));
  svg.append(draw("path", { class: "front", d: steps.join("") }));
  for (const point of points) {
    const [px, py] = place(point);
    const { colour, shape } = looks.get(String(valueOf(point.row.runs[0], "method")));
    if (point.std) {
      svg.append(draw("line", { class: "spread", x1: px, x2: px, y1: y((point.y - point.std) * up), y2: y((point.y + point.std) * up) }));
    }
    svg.append(dot(point.row, px, py, [gain, cost], mark(shape, px, py, colour, true, 4.5)));
  }
  for (const point of front) svg.append(draw("circle", { class: "ring", cx: place(point)[0], cy: place(point)[1], r: 9, "pointer-events": "none" }));
  const list = plainTable(["on the front", titleOf(cost), titleOf(gain)], front.map(({ row }) => [
    make("a", { href: addressOf(row.runs[0]) }, row.runs[0].name.split("/").at(-1)),
    cellOf(row, cost).text, cellOf(row, gain).text]), [1, 2]);
  const words = front.length === 1 ? "1 run on the Pareto front" : `${front.length} runs on the Pareto front`;
  return make("figure", {}, make("figcaption", {}, `Against ${titleOf(cost)}`), svg,
    make("details", {}, make("summary", {}, words), list));
}

/** Draw the view of gains against costs, of one data set: numbers of different data sets can't be compared. */
function showTradeoffs(runs) {
  const view = at("tradeoffs");
  const datasets = datasetsOf(runs);
  if (!datasets.length) return show(view, make("p", {}, "The filter leaves no run."));
  const dataset = datasets.some(([name]) => name === CHOSEN.dataset) ? CHOSEN.dataset : datasets[0][0];
  const here = runs.filter((run) => String(valueOf(run, "dataset")) === dataset);
  const gains = GAINS.filter((key) => here.some((run) => isNumber(valueOf(run, key))));
  const dialogues = here.some((run) => isNumber(valueOf(run, "test_loss")));
  const gain = gains.includes(CHOSEN.gain) ? CHOSEN.gain : dialogues ? "test_loss" : gains[0];
  const bar = make("div", { class: "bar" },
    datasetChoice(datasets, dataset, (name) => { CHOSEN.dataset = name; update(); }),
    gains.length ? choice("Reached", gains.map((key) => [key, titleOf(key)]), gain, (key) => { CHOSEN.gain = key; update(); }) : null);
  if (!gain) return show(view, bar, make("p", {}, "No run on this data set has ended with a score."));
  const looks = methodLooks(here);
  const rows = rowsOf(here, STATE.grouped);
  const plots = COSTS.map((cost) => tradeoff(rows, cost, gain, looks)).filter((plot) => plot);
  const legend = make("ul", { class: "legend", "aria-label": "Methods" },
    [...looks].map(([method, { colour, shape }]) => make("li", {}, legendMark(shape, colour), method)));
  const machines = new Set(here.map((run) => valueOf(run, "device")).filter((one) => one));
  const models = new Set(here.map((run) => String(valueOf(run, "model"))));
  const words = `${moreIsBetter(gain) ? "Higher" : "Lower"} and further left is better. A ring and the dashed line mark the Pareto front: no other run reaches more for less.`;
  const mixed = [
    machines.size > 1 ? `Of ${machines.size} machines (${[...machines].join("; ")}): times and memory differ for that reason too.` : null,
    models.size > 1 ? `Of ${models.size} models: ${[...models].join(", ")}.` : null,
  ].filter((one) => one);
  return show(view, bar, legend, make("p", { class: "soft" }, words), ...mixed.map((text) => make("p", { class: "warn" }, text)),
    make("div", { class: "plots" }, plots));
}

/** Draw the view of runs on dialogues: the loss on new dialogues against that on general ones. */
function showStyle(runs) {
  const view = at("style");
  const all = runs.filter((run) => run.mark);
  const datasets = datasetsOf(all);
  if (!datasets.length) return show(view, make("p", {}, "The filter leaves no run with both test_loss and general_loss."));
  const dataset = datasets.some(([name]) => name === CHOSEN.styleDataset) ? CHOSEN.styleDataset : datasets[0][0];
  const rows = rowsOf(all.filter((run) => String(valueOf(run, "dataset")) === dataset), STATE.grouped);
  const points = rows.map((row) => ({ row, x: cellOf(row, "test_loss").value, y: cellOf(row, "general_loss").value }));
  const { svg, x, y } = axes(...sizeIn(view),
    { values: points.map((point) => point.x), text: "new style learned: loss on test dialogues" },
    { values: points.map((point) => point.y), text: "old knowledge kept: loss on general dialogues" },
    `Loss on general dialogues against loss on test dialogues, ${points.length} runs`);
  const style = (run) => {
    const { method, layers, auxiliary } = run.mark;
    if (method === DATA.untrained) return ["star", "black", true];
    return [DATA.shapes[method], DATA.colours[layers], auxiliary];
  };
  for (const point of points) {
    const [px, py] = [x(point.x), y(point.y)];
    const [shape, colour, isFilled] = style(point.row.runs[0]);
    svg.append(dot(point.row, px, py, ["test_loss", "general_loss"], mark(shape, px, py, colour, isFilled, 5.5)));
  }
  const used = rows.map((row) => row.runs[0].mark);
  const item = (symbol, text) => make("li", {}, symbol, text);
  const part = (title, ...items) => make("div", {}, make("strong", {}, title), make("ul", { class: "legend", "aria-label": title }, items));
  const untrained = used.some((one) => one.method === DATA.untrained);
  const legend = make("div", { class: "legends" },
    part("Method and weights:", Object.entries(DATA.shapes).filter(([name]) => used.some((one) => one.method === name))
      .map(([name, shape]) => item(legendMark(shape, "black", false), name)),
      untrained ? item(legendMark("star", "black"), DATA.untrained) : null),
    part("Layers:", Object.entries(DATA.colours).filter(([name]) => used.some((one) => one.layers === name))
      .map(([name, colour]) => item(legendMark("square", colour), name))),
    part("Auxiliary data:", item(legendMark("circle", "black", true), "with"), item(legendMark("circle", "black", false), "without")));
  const sorted = [...rows].sort((one, two) => cellOf(one, "test_loss").value - cellOf(two, "test_loss").value);
  const list = plainTable(["run", "method, weights", "layers", "auxiliary", "test loss", "general loss"], sorted.map((row) => {
    const { method, layers, auxiliary } = row.runs[0].mark;
    return [make("a", { href: addressOf(row.runs[0]) }, row.runs[0].name), method, layers, auxiliary ? "with" : "without",
      cellOf(row, "test_loss").text, cellOf(row, "general_loss").text];
  }), [4, 5]);
  return show(view, make("div", { class: "bar" }, datasetChoice(datasets, dataset, (name) => { CHOSEN.styleDataset = name; update(); })),
    legend, make("p", { class: "soft" }, "The lower left learns most and forgets least."),
    make("div", { class: "plots one" }, make("figure", {}, svg)), make("details", {}, make("summary", {}, "The same as a table"), list));
}
