// The filter box: words, and terms such as lora_rank=8 or test_accuracy>95.

const SEARCHED = ["name", "model", "dataset", "method", "state", "differs"];

/** Return the terms of a filter's text: {key, operator, value}, or {word}. Quotes hold spaces together. */
function termsOf(text) {
  const words = text.match(/(?:"[^"]*"?|[^\s"])+/g) ?? [];
  return words.map((word) => {
    const found = /^(\w+)(!=|=|>|<)(.*)$/s.exec(word);
    const bare = (part) => part.replaceAll('"', "").toLowerCase();
    return found ? { key: found[1], operator: found[2], value: bare(found[3]) } : { word: bare(word) };
  });
}

/** Return the first key of the terms that no run has, or null. */
function unknownKey(terms) {
  const known = (key) => ["name", "state", "differs", "command"].includes(key) || RUNS.some((run) => valueOf(run, key) !== undefined);
  return terms.find((term) => term.key && !known(term.key))?.key ?? null;
}

/** Return whether a run is what a term asks for. Numbers count as they are shown: per cent, seconds, MB. */
function fits(run, term) {
  if (!term.key) return SEARCHED.some((key) => String(valueOf(run, key) ?? "").toLowerCase().includes(term.word));
  const value = valueOf(run, term.key);
  if (term.operator === "=" || term.operator === "!=") {
    const same = [String(value ?? ""), shown(term.key, value)].some((text) => text.toLowerCase() === term.value);
    return same === (term.operator === "=");
  }
  if (typeof value !== "number" || term.value === "") return false;
  const number = value * unitOf(term.key).factor;
  return term.operator === ">" ? number > Number(term.value) : number < Number(term.value);
}

/** Return the runs that the filter leaves. */
function filteredRuns() {
  const terms = termsOf(STATE.filter);
  return RUNS.filter((run) => terms.every((term) => fits(run, term)));
}

/** Say how many runs are left, or what is wrong with the filter. */
function describeFilter(runs) {
  const unknown = unknownKey(termsOf(STATE.filter));
  const found = at("found");
  found.className = unknown ? "error" : "";
  found.textContent = unknown ? `no run has “${unknown}”` : `${runs.length} of ${RUNS.length} runs`;
}
