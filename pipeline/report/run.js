// One run: its command and files, results, stages, classes, answers, settings.

/** Return a list of names and values. */
function pairs(entries) {
  return make("dl", { class: "pairs" }, entries.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

/** Return a hash by its first digits; the rest is beside the pointer. */
function shortened(text) {
  return text.length > 16 ? make("span", { title: text }, `${text.slice(0, 12)}…`) : text;
}

/** Return the command with a button that copies it. */
function commandBox(run) {
  if (!run.command) return make("p", { class: "soft" }, "Its result doesn't say by which command it was made.");
  const text = make("pre", { tabindex: 0 }, run.command);
  const button = make("button", {
    type: "button",
    onclick: () => {
      getSelection().selectAllChildren(text); // where the page may not write to the clipboard, Ctrl-C does
      navigator.clipboard?.writeText(run.command).then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Selected"; });
    },
  }, "Copy");
  return make("div", {}, text, button);
}

/** Return the table of classes of a split, and its confusion matrix. */
function classesBox({ split, rows, confusion, left_out: leftOut }) {
  const cell = (row, key) => (key === "texts" ? shown(key, row[key]) : shown(`${split}_${key}`, row[key]));
  const table = plainTable(["class", "precision (%)", "recall (%)", "F1 (%)", "texts"],
    rows.map((row) => [String(row.label), ...["precision", "recall", "f1", "texts"].map((key) => cell(row, key))]), [1, 2, 3, 4]);
  return make("div", {}, make("h3", {}, `By class, ${split}`), table,
    leftOut ? make("p", { class: "soft" }, `${leftOut} more classes are in result.json.`) : null,
    confusion.length ? confusionBox(rows.map((row) => String(row.label)), confusion) : null);
}

/** Return a confusion matrix. The more of its row a cell holds, the stronger is its colour. */
function confusionBox(labels, matrix) {
  const body = matrix.map((row, i) => {
    const sum = row.reduce((total, one) => total + (isNumber(one) ? one : 0), 0);
    const cells = row.map((one, j) => {
      const cell = make("td", { class: "number", title: `true: ${labels[i]}, predicted: ${labels[j]}` }, String(one));
      const share = isNumber(one) && sum ? one / sum : 0;
      cell.style.background = `color-mix(in srgb, var(--${i === j ? "blue" : "orange"}) ${Math.round(60 * share)}%, var(--ground))`;
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row" }, labels[i]), cells);
  });
  return make("div", {}, make("h3", {}, "Confusion: rows are true, columns predicted"),
    make("div", { class: "tablebox" }, make("table", { class: "matrix" },
      make("thead", {}, make("tr", {}, make("td"), labels.map((label) => make("th", { scope: "col" }, label)))), make("tbody", {}, body))));
}

/** Return sampled answers beside the answers of the data. */
function samplesBox(split, { shown: samples, of }) {
  const one = (sample) => make("dl", { class: "sample" },
    make("dt", {}, "prompt"), make("dd", {}, sample.prompt), make("dt", {}, "the model's answer"), make("dd", {}, sample.answer),
    make("dt", {}, "the answer of the data"), make("dd", {}, sample.reference));
  const count = samples.length < of ? `the first ${samples.length} of ${of}` : `${of}`;
  return make("details", { open: samples.length <= 5 }, make("summary", {}, `Answers, ${split}: ${count}`), samples.map(one));
}

/** Return the table of a run's stages. */
function stagesBox(stages) {
  const keys = ["method", "steps", "seconds", "trainable_parameters", "validation_loss", "validation_accuracy"];
  return make("div", {}, make("h3", {}, "Stages"), plainTable(["stage", ...keys.map((key) => (key === "seconds" ? "seconds" : titleOf(key)))],
    stages.map((stage, i) => [String(i + 1), ...keys.map((key) => shown(key, stage[key]))]), [2, 3, 4, 5, 6]));
}

/** Draw the view of the run that the address names, else of the first one selected, else of the table's first. */
function showRun(runs) {
  const run = STATE.run ?? [...STATE.selected].map((number) => RUNS[number])[0] ?? runs[0] ?? RUNS[0];
  const files = Object.entries(run.files).map(([name, href]) => make("li", {}, make("a", { href }, name === "folder" ? "folder" : name)));
  const results = Object.entries(run.results).filter(([, value]) => value !== null).map(([key, value]) => [titleOf(key), /sha256$|^git$/.test(key) ? shortened(String(value)) : shown(key, value)]);
  const settings = Object.entries(run.settings).filter(([, value]) => value !== null).map(([key, value]) => [key, String(value)]);
  const sisters = RUNS.filter((other) => other.group === run.group && other !== run);
  const box = checkbox("Selected for curves and comparison", STATE.selected.has(run.number), (on) => select([run], on));
  const looks = new Map([[run, { colour: "blue", dash: "" }]]);
  show(at("run"), make("h2", { tabindex: -1 }, run.name),
    make("p", {}, make("span", { class: `state-${run.state}` }, run.state), run.differs ? `; unlike most on ${valueOf(run, "dataset")}: ${run.differs}` : ""),
    ...run.problems.map((text) => make("p", { class: "error" }, text)), ...run.warnings.map((text) => make("p", { class: "warn" }, text)),
    ...run.notes.map((text) => make("p", { class: "soft" }, text)),
    make("p", {}, box),
    sisters.length ? make("p", {}, "Other seeds of this setting: ", sisters.flatMap((other, i) =>
      [i ? ", " : "", make("a", { href: addressOf(other) }, String(valueOf(other, "seed") ?? other.name))])) : null,
    make("h3", {}, "Command and files"), commandBox(run), make("ul", { class: "files" }, files),
    make("h3", {}, "Results"), results.length ? pairs(results) : make("p", {}, "There are none."),
    ...run.classes.map(classesBox),
    run.stages.length ? stagesBox(run.stages) : null,
    Object.keys(run.curves).length ? make("h3", {}, "Curves") : null,
    Object.keys(run.curves).length ? make("div", { class: "plots one" }, curvesPlot([run], looks, at("run"))) : null,
    remarkOf(run) ? make("p", { class: "soft" }, remarkOf(run)) : null,
    Object.keys(run.samples).length ? make("h3", {}, "Sampled answers") : null,
    ...Object.entries(run.samples).map(([split, samples]) => samplesBox(split, samples)),
    make("h3", {}, "Settings"), pairs(settings));
}
