// The page as a whole: which view is shown, and what the controls above the views do.

const VIEWS = { table: showTable, tradeoffs: showTradeoffs, style: showStyle, curves: showCurves, compare: showCompare, run: showRun };

/** Return the view that the address names, and take the run from it. */
function currentView() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  if (name === "run" && rest.length) {
    let wanted = rest.join("/");
    try {
      wanted = decodeURIComponent(wanted);
    } catch { /* it isn't encoded */ }
    STATE.run = RUN_NAMED.get(wanted) ?? STATE.run;
  }
  return name in VIEWS && !at(`tab-${name}`).hidden ? name : "table";
}

/** Draw the view that is shown, from STATE. */
function update() {
  const view = currentView();
  for (const name of Object.keys(VIEWS)) {
    const here = name === view;
    at(name).hidden = !here;
    at(`tab-${name}`).setAttribute("aria-selected", here);
    at(`tab-${name}`).tabIndex = here ? 0 : -1;
  }
  at("tools").hidden = view === "compare" || view === "run"; // which show any run, whatever the filter leaves
  tip("");
  const runs = filteredRuns();
  describeFilter(runs);
  VIEWS[view](runs);
}

/** Say above the views what there is, and what is broken. */
function describe() {
  const counts = ["unfinished", "broken"].map((state) => [RUNS.filter((run) => run.state === state).length, state]);
  const some = counts.filter(([n]) => n).map(([n, state]) => `, ${n} ${state}`).join("");
  at("summary").textContent = `${RUNS.length} run${RUNS.length === 1 ? "" : "s"} below ${DATA.directories.join(", ")}${some}; written ${DATA.written}`;
  document.title = `Runs below ${DATA.directories.join(", ")}`;
  const faulty = RUNS.filter((run) => run.state !== "complete" || run.problems.length);
  at("problems").hidden = !faulty.length;
  at("problems").querySelector("summary").textContent = `${faulty.length} run${faulty.length === 1 ? " is" : "s are"} unfinished or damaged`;
  at("problems").querySelector("ul").replaceChildren(...faulty.map((run) => make("li", {}, make("a", { href: addressOf(run) }, run.name), ": ",
    [run.state === "unfinished" ? "unfinished: it was interrupted, or is under way" : null, ...run.problems].filter((one) => one).join("; "))));
}

/** Let the arrow keys, Home and End go from tab to tab. */
function moveAlongTabs(event) {
  const tabs = [...document.querySelectorAll('[role="tab"]:not([hidden])')];
  const here = tabs.indexOf(event.target);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const tab = tabs[(to + tabs.length) % tabs.length];
  location.hash = tab.getAttribute("href");
  tab.focus();
}

at("tab-style").hidden = !RUNS.some((run) => run.mark);
at("tabs").addEventListener("keydown", moveAlongTabs);
at("filter").addEventListener("input", () => { STATE.filter = at("filter").value; update(); });
at("grouped").addEventListener("change", () => { STATE.grouped = at("grouped").checked; update(); });
at("clear").addEventListener("click", () => { STATE.selected.clear(); update(); });
at("more").addEventListener("click", () => { STATE.everyRow = true; update(); });
at("tools").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  update();
  scrollTo(0, 0);
  // Where the link that was followed is gone, the keyboard goes on from the run's heading.
  const gone = document.activeElement === document.body || document.activeElement.closest("[hidden]");
  if (currentView() === "run" && gone) at("run").querySelector("h2").focus();
});
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== lastWidth) update(); // not where a phone's keyboard changes the height
  lastWidth = innerWidth;
});
describe();
showColumnChoice();
update();
