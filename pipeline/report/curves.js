// Loss and accuracy over the optimizer's steps, of the runs that are selected.

const CURVES = { measure: "loss", log: false, train: true, validation: true };
const MOST_CURVES = 12;
const DASHES = ["", "6 3", "2 3"]; // of each further eight runs

/** Return the runs whose curves are drawn: those selected, else the first of the table. */
function curveRuns(runs) {
  const selected = [...STATE.selected].map((number) => RUNS[number]);
  const some = selected.length ? selected : sortedRows(rowsOf(runs, false)).map((row) => row.runs[0]).filter((run) => run.curves.train).slice(0, 3);
  return some.slice(0, MOST_CURVES);
}

/** Return the points of a curve as {x, y}; a null between two marks a gap. */
function pointsOf(run, split) {
  const column = CURVES.measure === "loss" ? 1 : 2;
  const factor = CURVES.measure === "loss" ? 1 : 100;
  return (run.curves[split]?.points ?? []).map((point) => (point[column] === null ? null : { x: point[0], y: point[column] * factor }));
}

/** Return a path through points. */
function pathOf(points, x, y) {
  let pen = "M";
  return points.map((point) => {
    if (point === null) {
      pen = "M";
      return "";
    }
    const step = `${pen}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

/** Return a plot of the curves of runs, each with its look, {colour, dash}, for a view. */
function curvesPlot(runs, looks, view) {
  const splits = ["train", "validation"].filter((split) => CURVES[split]);
  const lines = runs.flatMap((run) => splits.map((split) => ({ run, split, points: pointsOf(run, split) })));
  const all = lines.flatMap((line) => line.points).filter((point) => point && (!CURVES.log || point.y > 0));
  if (!all.length) return make("p", {}, "There is no curve to draw.");
  const { svg, x, y } = axes(...sizeIn(view),
    { values: all.map((point) => point.x), text: "optimizer steps" },
    { values: all.map((point) => point.y), text: CURVES.measure === "loss" ? "loss" : "accuracy (%)", log: CURVES.log },
    `${CURVES.measure} of ${runs.length} runs over the optimizer's steps`);
  for (const { run, split, points } of lines) {
    const { colour, dash } = looks.get(run);
    const shownPoints = points.map((point) => (point && CURVES.log && point.y <= 0 ? null : point));
    const train = split === "train";
    svg.append(draw("path", {
      d: pathOf(shownPoints, x, y), fill: "none", stroke: `var(--${colour})`, "stroke-dasharray": dash,
      "stroke-width": train ? 1.2 : 2.2, "stroke-opacity": train ? 0.75 : 1, "stroke-linejoin": "round",
    }));
    if (train && points.length > 1) continue;
    for (const point of shownPoints) if (point) svg.append(mark("circle", x(point.x), y(point.y), colour, !train, 3));
  }
  svg.addEventListener("pointermove", (event) => tip(nearest(event, svg, lines, x, y), event));
  svg.addEventListener("pointerleave", () => tip(""));
  return make("figure", {}, svg);
}

/** Return what the curve nearest to the pointer says there, or "". */
function nearest(event, svg, lines, x, y) {
  const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let best = null;
  for (const { run, split, points } of lines) {
    for (const point of points) {
      const distance = point ? Math.hypot(x(point.x) - spot.x, y(point.y) - spot.y) : Infinity;
      if (distance < (best?.distance ?? 24)) best = { distance, text: `${run.name}\n${split}, step ${point.x}: ${point.y.toPrecision(4)}` };
    }
  }
  return best?.text ?? "";
}

/** Return what there is to say about a run's curve: none, thinned, not finite. */
function remarkOf(run) {
  const curves = Object.values(run.curves);
  if (!curves.length) return "no metrics.jsonl";
  const gap = curves.flatMap((curve) => curve.points).find((point) => point[1] === null);
  const thinned = curves.find((curve) => curve.of > curve.points.length);
  return [gap ? `the loss isn't finite at step ${gap[0]}` : null,
    thinned ? `${thinned.points.length} of ${thinned.of.toLocaleString("en-US")} points` : null].filter((one) => one).join("; ");
}

/** Draw the view. */
function showCurves(runs) {
  const chosen = curveRuns(runs);
  const looks = new Map(chosen.map((run, i) => [run, { colour: COLOUR_NAMES[i % 8], dash: DASHES[Math.floor(i / 8)] }]));
  const set = (key) => (value) => { CURVES[key] = value; update(); };
  const bar = make("div", { class: "bar" },
    choice("Measure", [["loss", "loss"], ["accuracy", "accuracy"]], CURVES.measure, set("measure")),
    checkbox("training (thin)", CURVES.train, set("train")), checkbox("validation (with dots)", CURVES.validation, set("validation")),
    checkbox("logarithmic", CURVES.log, set("log")));
  const hint = !STATE.selected.size ? "No run is selected in the table: these are the first ones there."
    : STATE.selected.size > MOST_CURVES ? `The first ${MOST_CURVES} of ${STATE.selected.size} runs that are selected.` : "";
  const legend = make("ul", { class: "legend" }, chosen.map((run) => {
    const { colour, dash } = looks.get(run);
    const line = draw("svg", { viewBox: "0 0 22 18", "aria-hidden": "true" },
      draw("line", { x1: 0, x2: 22, y1: 9, y2: 9, stroke: `var(--${colour})`, "stroke-width": 3, "stroke-dasharray": dash }));
    const remark = remarkOf(run);
    return make("li", {}, line, make("a", { href: addressOf(run) }, run.name), remark ? make("span", { class: "soft" }, remark) : null,
      STATE.selected.has(run.number) ? make("button", { type: "button", "aria-label": `Leave out ${run.name}`, onclick: () => select([run], false) }, "×") : null);
  }));
  show(at("curves"), bar, make("p", { class: "soft" }, hint || "\u00a0"), make("div", { class: "plots one" }, curvesPlot(chosen, looks, at("curves"))), legend);
}
