// The table of runs: sorted by any column, with boxes that choose runs for curves and comparison.

const MOST_ROWS = 500; // more of them make each letter of a filter slow; a button shows them all
const NAME_WIDTH = "min(21em, 56vw)";
const WIDTHS = { state: 6.5, dataset: 8, model: 9, method: 7.5, trainable_parameters: 7.2, differs: 24, seed: 7, command: 30 }; // in em

/** Return the rows in the order that the headings chose. What has no value stands last, whichever way. */
function sortedRows(rows) {
  const { key, down } = STATE.sort;
  const numeric = (value) => typeof value === "number";
  const compare = (one, two) => {
    const [a, b] = [one.value, two.value];
    const [noA, noB] = [a, b].map((value) => value === undefined || value === "");
    if (noA || noB) return noA - noB;
    if (numeric(a) !== numeric(b)) return numeric(a) ? -1 : 1; // NaN and other texts, behind the numbers
    const order = numeric(a) ? a - b : ORDER.compare(a, b);
    return down ? -order : order;
  };
  const keyed = rows.map((row) => ({ row, cell: cellOf(row, key) }));
  return keyed.sort((one, two) => compare(one.cell, two.cell)).map(({ row }) => row);
}

// The columns of numbers.
const NUMERIC = new Set(COLUMNS.filter((key) => key !== "seed" && RUNS.some((run) => typeof valueOf(run, key) === "number")));
const ORDER = new Intl.Collator("en", { numeric: true });

function sortBy(key) {
  const again = STATE.sort.key === key;
  STATE.sort = { key, down: again ? !STATE.sort.down : moreIsBetter(key) === true };
  update();
}

function headingOf(key) {
  const direction = STATE.sort.key !== key ? "none" : STATE.sort.down ? "descending" : "ascending";
  const button = make("button", { type: "button", title: key, onclick: () => sortBy(key) }, titleOf(key));
  button.dataset.label = `sort ${key}`;
  const kind = key === "name" ? "name" : NUMERIC.has(key) ? "number" : null;
  return make("th", { scope: "col", "aria-sort": direction, class: kind }, button);
}

/** Choose the runs of a row, or no longer. */
function select(runs, on) {
  for (const run of runs) {
    if (on) STATE.selected.add(run.number);
    else STATE.selected.delete(run.number);
  }
  update();
}

/** Return the cell of a row with its name, and a box that chooses it. */
function nameCell(row) {
  const { text } = cellOf(row, "name");
  const chosen = row.runs.every((run) => STATE.selected.has(run.number));
  const box = make("input", {
    type: "checkbox", checked: chosen, "aria-label": `Select ${text}`, onchange: () => select(row.runs, box.checked),
  });
  box.dataset.label = `select ${row.runs[0].number}`;
  // A name that is too long loses its middle: names differ at their ends.
  const parts = [text.slice(0, -14), text.slice(-14)].map((part) => make("span", {}, part));
  const link = make("a", { href: addressOf(row.runs[0]) }, parts);
  return make("td", { class: "name", title: row.runs.map((run) => run.name).join("\n") }, make("div", {}, make("label", {}, box), link));
}

function rowOf(row, columns) {
  const chosen = row.runs.some((run) => STATE.selected.has(run.number));
  const cells = columns.map((key) => {
    const { text } = cellOf(row, key);
    if (!NUMERIC.has(key)) return make("td", { title: text, class: key === "state" ? `state-${text}` : null }, text);
    // Out of the order of Tab, which the name's link is in: hundreds of numbers lead to the same place.
    return make("td", { class: "number" }, make("a", { href: addressOf(row.runs[0]), tabindex: -1 }, text));
  });
  return make("tr", { class: chosen ? "chosen" : null }, nameCell(row), cells);
}

/** Draw the table. */
function showTable(runs) {
  const columns = STATE.columns;
  const widths = columns.map((key) => (NUMERIC.has(key) && STATE.grouped ? 8.2 : WIDTHS[key] ?? (NUMERIC.has(key) ? 6 : 10)));
  const groups = [NAME_WIDTH, ...widths.map((width) => `${width}em`)].map((width) => {
    const col = make("col");
    col.style.width = width;
    return col;
  });
  at("runs").style.width = `calc(${NAME_WIDTH} + ${widths.reduce((sum, width) => sum + width, 0)}em)`;
  const rows = sortedRows(rowsOf(runs, STATE.grouped));
  show(at("runs"), at("runs").caption, make("colgroup", {}, groups),
    make("thead", {}, make("tr", {}, headingOf("name"), columns.map(headingOf))),
    make("tbody", {}, (STATE.everyRow ? rows : rows.slice(0, MOST_ROWS)).map((row) => rowOf(row, columns))));
  const left = STATE.everyRow ? 0 : Math.max(0, rows.length - MOST_ROWS);
  at("more").hidden = !left;
  at("more").textContent = `The first ${MOST_ROWS} lines are shown: show ${left} more`;
  const n = STATE.selected.size;
  at("selected").textContent = n ? `${n} selected: see Curves and Compare two` : "Select runs for Curves and Compare two";
}

/** Draw the boxes that choose columns. */
function showColumnChoice() {
  const boxes = COLUMNS.filter(isFilled).map((key) => checkbox(key, STATE.columns.includes(key), (on) => {
    STATE.columns = on ? [...STATE.columns, key] : STATE.columns.filter((one) => one !== key);
    update();
  }));
  show(at("column-choice"), ...boxes);
}
