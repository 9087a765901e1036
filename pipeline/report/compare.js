// Two runs side by side: what differs in settings and results.

const PAIR = { a: null, b: null };

/** Return the two runs that are compared: those chosen here, else the first two selected, else the first two of the table. */
function pairOf(runs) {
  const first = [...STATE.selected].map((number) => RUNS[number]);
  const others = [...first, ...sortedRows(rowsOf(runs, false)).map((row) => row.runs[0]), ...RUNS];
  const a = PAIR.a ?? others[0];
  const b = PAIR.b ?? others.find((run) => run !== a) ?? a;
  return [a, b];
}

/** Return the names that either has, and which of their values differ. */
function differences(one, two) {
  const keys = [...new Set([...Object.keys(one), ...Object.keys(two)])];
  const value = (side, key) => (Object.hasOwn(side, key) ? side[key] : undefined);
  return { keys, differ: keys.filter((key) => value(one, key) !== value(two, key)) };
}

/** Return a value of one side as text; a dash where it isn't there. */
function sideText(side, key) {
  return Object.hasOwn(side, key) && side[key] !== null ? shown(key, side[key]) : "–";
}

/** Return B minus A, with its sign, where both are numbers. */
function changeText(a, b, key) {
  const [one, two] = [a.results[key], b.results[key]];
  if (!isNumber(one) || !isNumber(two)) return "";
  const { unit, digits } = unitOf(key);
  const text = digits === null ? String(Number((two - one).toPrecision(6))) : shown(key, two - one);
  const sign = two > one ? "+" : "";
  const share = ["s", "MB", ""].includes(unit) && one > 0 && digits !== null && !/_loss$|_perplexity$/.test(key) ? ` (×${(two / one).toPrecision(3)})` : "";
  return sign + text + share;
}

/** Draw the view. */
function showCompare(runs) {
  const [a, b] = pairOf(runs);
  const names = RUNS.map((run) => [run.number, run.name]);
  const set = (side) => (number) => { PAIR[side] = RUNS[Number(number)]; update(); };
  const swap = make("button", { type: "button", onclick: () => { [PAIR.a, PAIR.b] = [b, a]; update(); } }, "Swap");
  swap.dataset.label = "swap";
  const bar = make("div", { class: "bar" }, choice("A", names, a.number, set("a")), choice("B", names, b.number, set("b")), swap);
  const settings = differences(a.settings, b.settings);
  const results = differences(a.results, b.results);
  const measured = results.keys.filter((key) => !/(sha256|_reason)$/.test(key) && !Object.hasOwn(a.settings, key));
  const told = settings.differ.filter(isSetting).concat(settings.differ.filter((key) => !isSetting(key)));
  const heading = (first, last) => [first, make("a", { href: addressOf(a), title: a.name }, "A"), make("a", { href: addressOf(b), title: b.name }, "B"), ...last];
  const same = settings.keys.length - settings.differ.length;
  const files = results.differ.filter((key) => /sha256$/.test(key)).map((key) => key.replace("_sha256", ""));
  const looks = new Map([[a, { colour: "blue", dash: "" }], [b, { colour: "orange", dash: "" }]]);
  show(at("compare"), bar,
    make("h3", {}, `Settings: ${settings.differ.length} differ, ${same} are the same`),
    told.length ? plainTable(heading("setting", []), told.map((key) => [key, sideText(a.settings, key), sideText(b.settings, key)])) : null,
    make("p", { class: "soft" }, "Settings that a run's method doesn't read are left out."),
    files.length ? make("p", { class: "warn" }, `Not the same files went in: ${files.join(", ")}.`) : null,
    make("h3", {}, "Results"),
    plainTable(heading("result", ["B − A"]), measured.filter((key) => a.results[key] !== null || b.results[key] !== null).map((key) =>
      [titleOf(key), sideText(a.results, key), sideText(b.results, key), changeText(a, b, key)]), [1, 2, 3]),
    make("h3", {}, "Curves: A blue, B orange"),
    make("div", { class: "plots one" }, curvesPlot(a === b ? [a] : [a, b], looks, at("compare"))));
}
