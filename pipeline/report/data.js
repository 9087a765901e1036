// The runs, their columns, and rows of one run or of the seeds of one setting.

const DATA = JSON.parse(at("data").textContent);
const RUNS = DATA.runs;
const HIDDEN_RESULTS = ["interrupted", "model_reason", "data_reason", "weights", "tokenizer", "amp"]; // settings say it, or the run's own view
const FIRST_COLUMNS = ["state", "dataset", "method", "test_accuracy", "validation_accuracy", "test_macro_f1", "test_loss", "general_loss", "total_seconds",
  "peak_memory_bytes", "trainable_parameters", "seed", "model", "differs"];

/** Return a value of a run: one of its results, else of its settings. */
function valueOf(run, key) {
  if (key === "name" || key === "state" || key === "differs" || key === "command") return run[key];
  if (Object.hasOwn(run.results, key)) return run.results[key];
  return Object.hasOwn(run.settings, key) ? run.settings[key] : undefined;
}

/** Return how numbers of a name are shown: {unit, factor, digits}. */
function unitOf(key) {
  if (/_(accuracy|f1|bleu4|rouge1|rouge2|rougel|precision|recall)$/.test(key)) return { unit: "%", factor: 100, digits: 2 };
  if (/_loss$/.test(key)) return { unit: "", factor: 1, digits: 3 };
  if (/_perplexity$/.test(key)) return { unit: "", factor: 1, digits: 2 };
  if (/_seconds$/.test(key)) return { unit: "s", factor: 1, digits: 1 };
  if (/_bytes$/.test(key)) return { unit: "MB", factor: 1e-6, digits: 1 };
  if (/_parameters$|^steps$/.test(key)) return { unit: "", factor: 1, digits: 0 };
  if (/tokens_per_second$/.test(key)) return { unit: "1/s", factor: 1, digits: 1 };
  return { unit: "", factor: 1, digits: null };
}

/** Return a name as a heading, with its unit. */
function titleOf(key) {
  const words = { differs: "unlike most", peak_memory_bytes: "peak memory", total_seconds: "time", train_seconds: "train time", name: "run" };
  const { unit } = unitOf(key);
  const name = words[key] ?? key.replaceAll("_", " ");
  return unit ? `${name} (${unit})` : name;
}

/** Return a value as it is shown. */
function shown(key, value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  const { factor, digits } = unitOf(key);
  if (digits === null) return String(value);
  return (value * factor).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Return whether more of it is better, true or false; null where neither is. */
function moreIsBetter(key) {
  if (/_(loss|perplexity|seconds|bytes|parameters)$/.test(key)) return false;
  return unitOf(key).unit === "%" ? true : null;
}

/** Return the mean and the sample's standard deviation. */
function summary(values) {
  const mean = values.reduce((sum, one) => sum + one, 0) / values.length;
  const squares = values.reduce((sum, one) => sum + (one - mean) ** 2, 0);
  return { mean, std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null };
}

/** Return rows for a table or plot: of one run each, or of the seeds of one setting each. */
function rowsOf(runs, grouped) {
  if (!grouped) return runs.map((run) => ({ runs: [run] }));
  const rows = new Map();
  for (const run of runs) {
    if (!rows.has(run.group)) rows.set(run.group, { runs: [] });
    rows.get(run.group).runs.push(run);
  }
  return [...rows.values()];
}

/** Return what a row has of a column: {value, std, text}. The value of several numbers is their mean. */
function cellOf(row, key) {
  if (key === "name" && row.runs.length > 1) {
    return { value: row.runs[0].name, std: null, text: `${row.runs[0].name} and ${row.runs.length - 1} more` };
  }
  const values = row.runs.map((run) => valueOf(run, key)).filter((value) => value !== null && value !== undefined);
  if (values.length === 0) return { value: undefined, std: null, text: "" };
  if (key !== "seed" && values.length > 1 && values.every((value) => typeof value === "number")) {
    const { mean, std } = summary(values);
    const same = values.every((value) => value === values[0]);
    return { value: mean, std, text: same ? shown(key, mean) : `${shown(key, mean)} ± ${shown(key, std)}` };
  }
  const texts = [...new Set(values.map((value) => shown(key, value)))];
  return { value: values[0], std: null, text: key === "seed" || texts.length <= 2 ? texts.join(", ") : `${texts[0]}, …` };
}

/** Return whether a key is a setting that makes one run another experiment than the next. */
function isSetting(key) {
  return !DATA.not_the_setting.includes(key);
}

/** Say of each run, as `differs`, which settings it doesn't share with more than half of the runs on its data set. */
function findDifferences() {
  const elsewhere = ["model", "checkpoint", "dataset", "data_dir", "trainable_layers"]; // what has a column of its own, or a path
  const counts = new Map(); // data set -> setting -> value -> how many runs
  const countsOf = (run, key) => {
    const where = String(valueOf(run, "dataset"));
    if (!counts.has(where)) counts.set(where, new Map());
    if (!counts.get(where).has(key)) counts.get(where).set(key, new Map());
    return counts.get(where).get(key);
  };
  const compared = (run) => Object.entries(run.settings).filter(([key]) => isSetting(key) && !elsewhere.includes(key));
  for (const run of RUNS) {
    for (const [key, value] of compared(run)) countsOf(run, key).set(value, (countsOf(run, key).get(value) ?? 0) + 1);
  }
  for (const run of RUNS) {
    const unlike = compared(run).filter(([key, value]) => {
      const counts = countsOf(run, key);
      return 2 * counts.get(value) <= [...counts.values()].reduce((sum, one) => sum + one, 0);
    });
    run.differs = unlike.map(([key, value]) => `${key}=${value}`).join(" ");
  }
}

/** Return the names of all columns: results first, then the settings that aren't the same everywhere. */
function allColumns() {
  const results = new Set(RUNS.flatMap((run) => Object.keys(run.results)));
  const settings = new Map();
  for (const run of RUNS) {
    for (const [key, value] of Object.entries(run.settings)) settings.set(key, (settings.get(key) ?? new Set()).add(value));
  }
  const varied = [...settings].filter(([, values]) => values.size > 1).map(([key]) => key);
  return [...new Set(["state", "differs", ...results, ...varied])].filter((key) => !HIDDEN_RESULTS.includes(key));
}

/** Return whether any run has this column. */
function isFilled(key) {
  return RUNS.some((run) => ![null, undefined, ""].includes(valueOf(run, key)));
}

findDifferences();
for (const [number, run] of RUNS.entries()) run.number = number;
const COLUMNS = allColumns();
const RUN_NAMED = new Map(RUNS.map((run) => [run.name, run]));

// What the reader has chosen. Views are drawn from it and from nothing else.
const STATE = {
  filter: "",
  grouped: false,
  everyRow: false, // whether the table shows more than its first lines
  sort: { key: "name", down: false },
  columns: FIRST_COLUMNS.filter((key) => COLUMNS.includes(key) && isFilled(key) &&
    (key !== "state" || RUNS.some((run) => run.state !== "complete")) &&
    (key !== "validation_accuracy" || RUNS.some((run) => typeof run.results.test_accuracy !== "number"))),
  selected: new Set(), // numbers of runs, in the order in which they were chosen
  run: null, // the one that is looked at
};

/** Return the address of a run within the page. */
function addressOf(run) {
  return `#run/${encodeURIComponent(run.name)}`;
}
