// What all plots are made of: scales, ticks, axes, marks.

const COLOUR_NAMES = ["blue", "orange", "green", "purple", "sky", "yellow", "brown", "black"];
const SHAPE_NAMES = ["circle", "square", "triangle", "diamond", "cross", "hexagon", "wedge", "pentagon"];

/** Return the corners of a regular polygon of radius 1, the first one at an angle in turns from the top. */
function polygon(corners, turn = 0) {
  return [...Array(corners).keys()].map((i) => {
    const angle = 2 * Math.PI * (i / corners + turn);
    return [Math.sin(angle), -Math.cos(angle)];
  });
}

const STAR = [...Array(10).keys()].map((i) => polygon(10)[i].map((part) => part * (i % 2 ? 0.6 : 1.5)));
const CORNERS = {
  square: polygon(4, 1 / 8).map(([x, y]) => [x * 1.2, y * 1.2]),
  diamond: polygon(4).map(([x, y]) => [x * 1.3, y * 1.3]),
  triangle: polygon(3).map(([x, y]) => [x * 1.3, y * 1.3]),
  wedge: polygon(3, 1 / 2).map(([x, y]) => [x * 1.3, y * 1.3]),
  pentagon: polygon(5).map(([x, y]) => [x * 1.15, y * 1.15]),
  hexagon: polygon(6).map(([x, y]) => [x * 1.15, y * 1.15]),
  cross: [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4],
    [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]],
  star: STAR,
};

/** Return a mark at a place. `colour` is a name of the style sheet's palette. */
function mark(shape, x, y, colour, isFilled = true, radius = 5) {
  const look = { class: "mark", fill: isFilled ? `var(--${colour})` : "var(--ground)", stroke: `var(--${colour})`, "stroke-width": 1.8 };
  if (shape === "circle") return draw("circle", { cx: x, cy: y, r: radius, ...look });
  const points = CORNERS[shape].map(([dx, dy]) => `${(x + dx * radius).toFixed(1)},${(y + dy * radius).toFixed(1)}`);
  return draw("polygon", { points: points.join(" "), "stroke-linejoin": "round", ...look });
}

/** Return a mark on its own, for a legend. */
function legendMark(shape, colour, isFilled = true) {
  return draw("svg", { viewBox: "0 0 22 18", "aria-hidden": "true" }, mark(shape, 11, 9, colour, isFilled));
}

/** Return round numbers between two limits, about `n` of them. */
function roundTicks(low, high, n) {
  const rough = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** Return 1, 2 and 5 times the powers of ten between two limits, or the powers alone where those are enough. */
function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of [1, 2, 5]) ticks.push(Number((factor * 10 ** power).toPrecision(6)));
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  const powers = inside.filter((tick) => Number.isInteger(Math.log10(tick)));
  return powers.length >= 3 ? powers : inside.length >= 2 ? inside : roundTicks(low, high, 4);
}

/** Return a number as the label of a tick: 20k, 1.5M. */
function tickText(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const [divisor, unit] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : size >= 1e4 ? [1e3, "k"] : [1, ""];
  return String(Number((value / divisor).toPrecision(4))) + unit;
}

/** Return a scale from the values to the pixels from `start` to `end`: {place, ticks}.
 *
 * A logarithmic one has the values that are 0 or below at its very start. Two values far apart make it one, if `mayBeLog`.
 */
function scaleOf(values, start, end, mayBeLog = false) {
  const positive = values.filter((value) => value > 0);
  const span = Math.max(...positive) / Math.min(...positive);
  if (mayBeLog && positive.length > 1 && span > 20) {
    const zero = positive.length < values.length;
    const from = zero ? start + (end - start) * 0.08 : start;
    const [low, high] = padded(Math.log10(Math.min(...positive)), Math.log10(Math.max(...positive)));
    const place = (value) => (value <= 0 ? start : from + ((Math.log10(value) - low) / (high - low)) * (end - from));
    return { place, ticks: [...(zero ? [0] : []), ...logTicks(10 ** low, 10 ** high)] };
  }
  const [low, high] = padded(Math.min(...values), Math.max(...values));
  const place = (value) => start + ((value - low) / (high - low)) * (end - start);
  return { place, ticks: roundTicks(low, high, Math.abs(end - start) > 350 ? 6 : 4) };
}

/** Return limits with a little room around them. */
function padded(low, high) {
  const room = (high - low) * 0.06 || Math.abs(low) * 0.05 || 1;
  return [low - room, high + room];
}

/** Return the width of a plot that fills a view, in pixels, and a height that goes with it: letters stay as large as they are. */
function sizeIn(view) {
  const width = Math.min(820, Math.max(300, view.clientWidth));
  return [width, Math.round(Math.min(470, Math.max(330, width * 0.6)))];
}

/** Return a drawing with axes: {svg, x, y}; x and y place values. A label may be {text, values, log}. */
function axes(width, height, horizontal, vertical, label) {
  const [left, right, top, bottom] = [52, 12, 10, 46];
  const x = scaleOf(horizontal.values, left, width - right, horizontal.log);
  const y = scaleOf(vertical.values, height - bottom, top, vertical.log);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  let last = -Infinity;
  for (const tick of x.ticks) {
    const place = x.place(tick);
    svg.append(draw("line", { class: "grid", x1: place, x2: place, y1: top, y2: height - bottom }));
    if (place - last < 34) continue; // it would touch the last label
    last = place;
    svg.append(draw("text", { x: place, y: height - bottom + 16, "text-anchor": "middle" }, tickText(tick)));
  }
  for (const tick of y.ticks) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y.place(tick), y2: y.place(tick) }));
    svg.append(draw("text", { x: left - 6, y: y.place(tick) + 4, "text-anchor": "end" }, tickText(tick)));
  }
  svg.append(draw("rect", { class: "frame", x: left, y: top, width: width - left - right, height: height - top - bottom }));
  svg.append(draw("text", { class: "title", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, horizontal.text));
  svg.append(draw("text", { class: "title", x: -(top + height - bottom) / 2, y: 13, "text-anchor": "middle", transform: "rotate(-90)" }, vertical.text));
  return { svg, x: x.place, y: y.place };
}
