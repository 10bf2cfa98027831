// The explorer: one run at a time, seen in views that share a loop, a token, a head and a run.
const boot = JSON.parse(document.getElementById("boot").textContent);
const $ = (id) => document.getElementById(id);
const none = () => ({reset: [], hide: [], heads: [], attention: [], mlps: []});
const state = {loop: 0, focus: 0, head: 0, change: none(), asked: 0};
let view = null, timer = null;
const PLOT = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Arrays come as base64, whole numbers of 65,535 for shares.
function grid(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const values = packed.type === "u2" ? Float32Array.from(new Uint16Array(bytes.buffer), (n) => n / 65535) : new Float32Array(bytes.buffer);
  const steps = packed.shape.map((_, i) => packed.shape.slice(i + 1).reduce((a, b) => a * b, 1));
  return (...place) => {  // the part of an array at a place: a number, or the flat rest
    const start = place.reduce((sum, at, i) => sum + at * steps[i], 0);
    return place.length === packed.shape.length ? values[start] : values.subarray(start, start + steps[place.length - 1]);
  };
}
function opened(packed) {
  const arrays = Object.fromEntries(Object.entries(packed.arrays).map(([name, one]) => [name, grid(one)]));
  return {...packed, ...arrays, layers: packed.arrays.pattern?.shape[2] ?? 0, nHeads: packed.arrays.pattern?.shape[3] ?? 0};
}
const nRuns = () => view.runs.length;
const shownRun = () => Math.min(Number($("run").value), nRuns() - 1);
const range = (n) => [...Array(n).keys()];
const two = (x) => Number.isFinite(x) ? Number(x.toPrecision(3)).toString() : "–";

// What is drawn follows the theme.
function look(more = {}) {
  const {ink, paper, grid} = theme(dark.matches), axis = {gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true};
  const {xaxis, yaxis, ...rest} = more;
  return {paper_bgcolor: paper, plot_bgcolor: paper, font: {color: ink, family: "system-ui, sans-serif", size: 12}, margin: {l: 55, r: 15, t: 12, b: 45},
    hovermode: "closest", legend: {orientation: "h", y: -0.2}, xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}, ...rest};
}
const diverging = () => [[0, "#2166ac"], [0.5, theme(dark.matches).paper], [1, "#b2182b"]];  // blue below zero, red above
const inks = () => [css("--accent"), css("--changed")];

function drawError() {
  const measure = $("measure").value, loops = view.loops, lines = [];
  const answer = Math.max(0, view.readAt.indexOf(state.focus) < 0 ? view.readAt.length - 1 : view.readAt.indexOf(state.focus));
  const at = view.readAt[answer];
  view.runs.forEach((name, run) => {
    const colour = inks()[run], get = (array, ...rest) => loops.map((_, t) => array(run, t, ...rest));
    if (measure === "error") {
      const low = get(view.median_low), high = get(view.median_high);
      if (view.nPrompts > 1) {
        if (low.some(Number.isFinite)) lines.push({x: [...loops, ...[...loops].reverse()], y: [...high, ...low.reverse()], fill: "toself", fillcolor: colour, opacity: 0.15, line: {width: 0}, mode: "lines",
          hoverinfo: "skip", showlegend: false, name});
        lines.push({x: loops, y: get(view.median), name: `${name}, median of ${view.nPrompts}`, line: {color: colour, dash: "dot", width: 1.5}, mode: "lines"});
      }
      lines.push({x: loops, y: get(view.error, view.prompt), name: `${name}, this prompt`, line: {color: colour, width: 2.5}, mode: "lines+markers", marker: {size: 4}});
    } else {
      const array = measure === "final" ? view.to_final : view.answer_error;
      const values = get(array, answer).map((x) => measure === "probability" ? Math.exp(-x) : x);
      lines.push({x: loops, y: values, name: `${name}, at token ${at}`, line: {color: colour, width: 2.5}, mode: "lines+markers", marker: {size: 4}});
    }
  });
  const log = measure !== "probability";
  if (log) lines.forEach((line) => { line.y = line.y.map((y) => y > 0 ? y : null); });
  const seen = lines.flatMap((line) => line.y).filter((y) => y > 0), wide = Math.max(...seen) > 30 * Math.min(...seen);
  const title = {error: view.queryUnit, answer: view.unit, final: view.stepWords, probability: "probability of the right answer"}[measure];
  Plotly.react("error", lines, look({xaxis: {title: {text: "loops done"}}, showlegend: true,
    yaxis: {title: {text: title}, type: log ? "log" : "linear", exponentformat: "power", ...(!log ? {range: [0, 1.02]} : wide ? {dtick: 1} : {})},
    shapes: [{type: "line", x0: loops[state.loop], x1: loops[state.loop], y0: 0, y1: 1, yref: "paper", line: {color: css("--quiet"), width: 1.5}},
      {type: "line", x0: view.trained, x1: view.trained, y0: 0, y1: 1, yref: "paper", line: {color: css("--quiet"), dash: "dot", width: 1}}],
    annotations: view.trained <= loops.at(-1) ? [{x: view.trained, y: 1, yref: "paper", text: "trained", showarrow: false, xanchor: "right", yanchor: "top", font: {color: css("--quiet"), size: 11}}] : []}), PLOT);
}

function drawPath() {
  if (!view.path) return;
  const first = Number($("axes").value), size = view.arrays.path.shape[3], run = shownRun();
  const at = (r, t, p, i) => i < size ? view.path(r, t, p, i) : 0, tokens = range(view.tokens.length);
  const along = (r, p) => ({x: view.loops.map((_, t) => at(r, t, p, first)), y: view.loops.map((_, t) => at(r, t, p, first + 1))});
  const all = tokens.map((p) => along(run, p));
  const names = tokens.map((p) => `${p}: ${view.tokens[p]}`);
  const traces = [
    {x: all.flatMap((one) => [...one.x, null]), y: all.flatMap((one) => [...one.y, null]), mode: "lines", line: {color: css("--line"), width: 1}, opacity: 0.5, hoverinfo: "skip", name: "all tokens"},
    {x: tokens.map((p) => all[p].x[state.loop]), y: tokens.map((p) => all[p].y[state.loop]), mode: "markers", name: `after ${view.loops[state.loop]} loops`, customdata: tokens, text: names,
      marker: {size: 7, color: tokens, colorscale: "Viridis", line: {color: theme(dark.matches).ink, width: 0.5}}, hovertemplate: "%{text}<extra></extra>"},
  ];
  view.runs.forEach((name, r) => traces.push({...along(r, state.focus), mode: "lines+markers", name: `${name}: token ${state.focus}`, line: {color: inks()[r], width: 2}, marker: {size: 4},
    customdata: view.loops, hovertemplate: "after %{customdata} loops<extra></extra>"}));
  traces.push({x: [traces[1].x[state.focus]], y: [traces[1].y[state.focus]], mode: "markers", marker: {size: 14, symbol: "circle-open", color: inks()[run], line: {width: 3}}, hoverinfo: "skip", showlegend: false});
  const axis = (i) => ({title: {text: `PC ${i + 1} (${Math.round(100 * (i < view.arrays.explained.shape[0] ? view.explained(i) : 0))} %)`}});
  Plotly.react("path", traces, look({xaxis: axis(first), yaxis: axis(first + 1), showlegend: true}), PLOT);
}

const SHADES = range(256).map((i) => { const x = Math.sqrt(i / 255); return [255 - 229 * x, 255 - 160 * x, 255 - 110 * x].map(Math.round); });
const DARKS = range(256).map((i) => { const x = Math.sqrt(i / 255); return [20 + 130 * x, 23 + 205 * x, 27 + 215 * x].map(Math.round); });
function paintPattern(canvas, values, n) {
  const pen = canvas.getContext("2d"), picture = pen.createImageData(n, n), shades = dark.matches ? DARKS : SHADES;
  values.forEach((value, i) => picture.data.set([...shades[Math.round(255 * Math.min(1, value))], 255], 4 * i));
  pen.putImageData(picture, 0, 0);
}
function columns() {  // at most 24 loops are shown as pictures
  const n = view.loops.length;
  return n <= 24 ? range(n) : [...new Set(range(24).map((i) => Math.round(i * (n - 1) / 23)))];
}
function drawHeads() {
  if (!view.pattern) return;
  const n = view.tokens.length, box = $("heads"), run = shownRun(), cols = columns();
  box.replaceChildren();
  const beside = Math.max(1, Math.min(pairs().length, Math.floor(box.parentElement.clientWidth / (100 + 47 * cols.length))));  // rows of few loops
  box.style.gridTemplateColumns = `auto repeat(${cols.length}, 44px) `.repeat(beside);
  for (const _ of range(beside)) {
    box.append(Object.assign(document.createElement("span"), {className: "name", textContent: "loop"}));
    for (const t of cols) box.append(Object.assign(document.createElement("span"), {className: "count", textContent: view.loops[t]}));
  }
  for (const [i, [layer, head]] of pairs().entries()) {
    const button = Object.assign(document.createElement(boot.live && boot.able.heads ? "button" : "span"), {className: "name", textContent: `head ${layer}.${head}`, type: "button"});
    button.dataset.head = `${layer}.${head}`;
    const off = state.change.heads.some(([l, h]) => l === layer && h === head);
    button.classList.toggle("off", off);
    button.setAttribute("aria-pressed", off);
    if (boot.live && boot.able.heads) button.onclick = () => toggle("heads", [layer, head]);
    box.append(button);
    for (const t of cols) {
      const canvas = Object.assign(document.createElement("canvas"), {width: n, height: n, title: `loop ${view.loops[t]}, head ${layer}.${head}`});
      canvas.dataset.place = `${i} ${t}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", canvas.title);
      paintPattern(canvas, view.pattern(run, t, layer, head), n);
      canvas.onclick = () => { state.head = i; setLoop(t); };
      box.append(canvas);
    }
  }
  markHeads();
}
function markHeads() {
  const cols = columns(), near = cols.reduce((a, b) => Math.abs(b - state.loop) < Math.abs(a - state.loop) ? b : a, 0);
  for (const canvas of $("heads").querySelectorAll("canvas")) {
    const [head, t] = canvas.dataset.place.split(" ").map(Number);
    canvas.classList.toggle("chosen", head === state.head && t === near);
    canvas.classList.toggle("now", t === near && head !== state.head);
  }
  $("head").value = state.head;
}
const pairs = () => range(view.layers).flatMap((layer) => range(view.nHeads).map((head) => [layer, head]));

function ticks(words) {  // as many words beside an axis as there is room for
  const step = Math.ceil(words.length / (innerWidth < 760 ? 24 : 64)), places = range(words.length).filter((p) => p % step === 0);
  return {tickvals: places, ticktext: places.map((p) => words[p].split(" = ")[0].slice(0, 14)), tickfont: {size: words.length > 40 ? 8 : 10, family: "ui-monospace, monospace"}, showgrid: false};
}
const differenceSizes = new WeakMap();  // of every view, by head
function largestDifference(layer, head) {  // over all loops, so that colours mean the same when the loop is changed
  if (!differenceSizes.has(view)) differenceSizes.set(view, new Map());
  const sizes = differenceSizes.get(view), key = `${layer}.${head}`;
  if (!sizes.has(key)) {
    let size = 0.01;
    for (const t of range(view.loops.length)) {
      const clean = view.pattern(0, t, layer, head);
      view.pattern(1, t, layer, head).forEach((x, i) => { size = Math.max(size, Math.abs(x - clean[i])); });
    }
    sizes.set(key, size);
  }
  return sizes.get(key);
}
function drawPattern() {
  if (!view.pattern) return;
  const [layer, head] = pairs()[state.head], n = view.tokens.length, what = $("pattern-run").value;
  const of = (run) => view.pattern(run, state.loop, layer, head);
  const values = what === "difference" ? of(1).map((x, i) => x - of(0)[i]) : Float32Array.from(of(Math.min(Number(what), nRuns() - 1)));
  const rows = range(n).map((q) => Array.from(values.subarray(q * n, (q + 1) * n)));
  const levels = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1];
  const size = what === "difference" ? largestDifference(layer, head) : 1;
  const scale = what === "difference" ? {z: rows, colorscale: diverging(), zmin: -size, zmax: size, colorbar: {thickness: 10}}
    : {z: rows.map((row) => row.map(Math.sqrt)), zmin: 0, zmax: 1, colorscale: [0, 128, 255].map((i) => [Math.sqrt(i / 255), `rgb(${(dark.matches ? DARKS : SHADES)[i]})`]),
      colorbar: {thickness: 10, tickvals: levels.map(Math.sqrt), ticktext: levels.map(String)}};
  const axis = {...ticks(view.tokens), zeroline: false};
  Plotly.react("pattern", [{type: "heatmap", ...scale, customdata: rows, text: range(n).map((q) => range(n).map((k) => `${view.tokens[q]} → ${view.tokens[k]}`)),
    hovertemplate: "%{text}: %{customdata:.3f}<extra></extra>"}], look({
    xaxis: {...axis, title: {text: "attended to"}, tickangle: -60}, yaxis: {...axis, title: {text: `loop ${view.loops[state.loop]}, head ${layer}.${head}`}, autorange: "reversed"},
    shapes: [{type: "rect", x0: -0.5, x1: n - 0.5, y0: state.focus - 0.5, y1: state.focus + 0.5, line: {color: css("--changed"), width: 1.5}}]}), PLOT);
}

function drawTokens() {
  const box = $("tokens"), attention = view.pattern && (() => { const [l, h] = pairs()[state.head]; return view.pattern(shownRun(), state.loop, l, h); })();
  const n = view.tokens.length, [r, g, b] = dark.matches ? [108, 195, 223] : [31, 111, 139];
  if (box.childElementCount !== n) {
    box.replaceChildren(...range(n).map((p) => Object.assign(document.createElement("button"), {type: "button", onclick: () => clicked(p)})));
  }
  [...box.children].forEach((button, p) => {
    button.textContent = view.tokens[p];
    button.title = `token ${p}` + (p === view.query ? ", the query" : "");
    button.dataset.token = p;
    button.style.background = attention ? `rgba(${r}, ${g}, ${b}, ${0.75 * Math.sqrt(attention[state.focus * n + p])})` : "";
    button.classList.toggle("focus", p === state.focus);
    for (const kind of ["reset", "hide"]) button.classList.toggle(kind, state.change[kind].includes(p));
  });
  const [layer, head] = view.pattern ? pairs()[state.head] : [];
  $("tokens-told").textContent = view.pattern
    ? `Shaded: what token ${state.focus} (${view.tokens[state.focus]}) attends to with head ${layer}.${head} in loop ${view.loops[state.loop]}.`
    : `Seen: token ${state.focus} (${view.tokens[state.focus]}).`;
}

function drawLens() {
  const run = shownRun(), answers = range(view.readAt.length), table = document.createElement("table"), worded = Boolean(view.topAnswer);
  const row = (tag, head, cells) => { const tr = document.createElement("tr"); tr.append(Object.assign(document.createElement("th"), {textContent: head}), ...cells); tag.append(tr); return tr; };
  const cell = (text, tag = "td") => Object.assign(document.createElement(tag), {textContent: text});
  row(table.createTHead(), "after", answers.map((a) => cell(view.tokens[view.readAt[a]], "th")));
  const body = table.createTBody(), [r, g, b] = dark.matches ? [108, 195, 223] : [31, 111, 139];
  row(body, "right", answers.map((a) => cell(view.right[a]))).className = "answers";
  view.loops.forEach((loop, t) => {
    const cells = answers.map((a) => {
      let text = "", strength = 0, told = `token ${view.readAt[a]}, after ${loop} loops`, same = true, isRight = false;
      if (worded) {
        const best = view.topAnswer[run][t][a];
        text = best[0]; strength = view.top_probability(run, t, a, 0); isRight = text === view.right[a];
        told += "\n" + best.map((word, k) => `${word}  ${(100 * view.top_probability(run, t, a, k)).toFixed(1)} %`).join("\n");
        same = text === view.topAnswer[0][t][a][0];
      } else {
        const error = view.answer_error(run, t, a);
        text = view.prediction ? view.prediction(run, t, a).toFixed(2) : two(error);
        strength = Math.exp(-error * 10); isRight = error < view.failure;
        told += `\nright ${view.right[a]}, error ${two(error)}`;
        same = Math.abs(error - view.answer_error(0, t, a)) <= view.failure;
      }
      const td = cell(text);
      td.title = told;
      td.style.background = `rgba(${r}, ${g}, ${b}, ${0.6 * strength})`;
      td.classList.toggle("right", isRight);
      td.classList.toggle("moved", !same);
      td.onclick = () => { state.focus = view.readAt[a]; setLoop(t); };
      return td;
    });
    row(body, loop, cells);
  });
  $("lens").replaceChildren(table);
  $("lens-told").textContent = worded
    ? "The best answer read from the state after every loop, shaded by its probability; bold where it is right. The five best stand behind each."
    : "The prediction read from the state after every loop, shaded by how near it is; bold where its error is below " + two(view.failure) + ".";
  if (run) $("lens-told").textContent += " Framed: not so in the clean run.";
  markLens();
}
function markLens() {
  const place = view.readAt.indexOf(state.focus);
  [...$("lens").querySelectorAll("tbody tr")].forEach((tr, i) => {
    tr.classList.toggle("now", i === state.loop + 1);
    [...tr.querySelectorAll("td")].forEach((td, a) => td.classList.toggle("focus", a === place));
  });
}

function drawEffects() {
  const found = view.effects;
  $("effects").hidden = !found;
  if (!found) return;
  const values = grid(found.values), size = Math.max(0.01, ...range(found.loops.length).flatMap((t) => [...values(t)].map(Math.abs)));
  const words = found.positions.map((p) => view.tokens[p]);
  Plotly.react("effects", [{type: "heatmap", x: range(words.length), y: found.loops, z: found.loops.map((_, t) => Array.from(values(t))), customdata: found.loops.map(() => found.positions),
    text: found.loops.map(() => words), hovertemplate: "after %{y} loops, %{text}: %{z:.3f}<extra></extra>", colorscale: diverging(), zmin: -size, zmax: size, colorbar: {thickness: 10}}],
    look({xaxis: {...ticks(words), tickangle: -60}, yaxis: {title: {text: "loops done"}, showgrid: false}}), PLOT);
  $("effects-told").textContent = found.told;
  if (!$("effects").linked) {  // a click shows the loop and the token in the other views
    $("effects").linked = true;
    $("effects").on("plotly_click", (event) => { state.focus = view.effects.positions[event.points[0].x]; setLoop(view.effects.loops.indexOf(event.points[0].y)); });
  }
}

function draw() { drawTokens(); drawError(); drawPath(); drawHeads(); drawPattern(); drawLens(); drawEffects(); }
function drawFocus() { drawTokens(); drawError(); drawPath(); drawPattern(); markHeads(); markLens(); }
function setLoop(t) {
  state.loop = Math.max(0, Math.min(view.loops.length - 1, t));
  $("loop").value = state.loop + 1;
  $("loop-told").textContent = view.loops[state.loop];
  drawFocus();
}

// A view is shown: choices follow what it has.
function show(packed) {
  const before = view, atEnd = !before || state.loop === before.loops.length - 1;
  view = opened(packed);
  document.querySelectorAll("[data-needs-view]").forEach((one) => { one.hidden = !view[one.dataset.needsView]; });
  if (!before || before.tokens.length !== view.tokens.length || before.prompt !== view.prompt) state.focus = view.query;
  state.head = Math.min(state.head, Math.max(0, pairs().length - 1));
  $("loop").max = view.loops.length;
  if (atEnd || state.loop >= view.loops.length) state.loop = view.loops.length - 1;
  fill("head", pairs().map(([layer, head], i) => [i, `${layer}.${head}`]), state.head);
  fill("pattern-run", [...view.runs.map((name, i) => [i, name]), ...(nRuns() > 1 ? [["difference", "changed − clean"]] : [])], nRuns() - 1);
  $("run-choice").hidden = $("pattern-choice").hidden = nRuns() < 2;
  $("run").value = nRuns() - 1;
  fill("measure", [["error", "error at the query"], ["answer", "error at the token looked at"], ["final", "distance to the last clean answer"],
    ...(view.topAnswer ? [["probability", "probability of the right answer"]] : [])], $("measure").value || "error");
  $("extent").textContent = `${view.nPrompts} prompt${view.nPrompts > 1 ? "s" : ""} of ${view.tokens.length} tokens.`;
  say(view.told);
  $("loop").value = state.loop + 1;
  $("loop-told").textContent = view.loops[state.loop];
  draw();
}
function fill(id, options, chosen) {
  $(id).replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => String(value) === String(chosen))) $(id).value = chosen;
}
function say(text, wrong = false) { $("told").textContent = text; $("told").classList.toggle("wrong", wrong); }

// Live runs.
const number = (id) => $(id).value === "" ? null : Number($(id).value);
function prompts() {  // what differs from the start, whose prompts are there already
  const now = {seed: number("seed"), length: number("length"), text: $("text").value};
  return Object.fromEntries(Object.entries(now).filter(([name, value]) => boot.offers[name] && value !== boot.asked[name]));
}
function options() {
  const changed = Object.values(state.change).some((part) => part.length), where = $("where").value, last = number("loops") ?? view.loops.length;
  const inLoops = where === "all" || !changed ? null : where === "this" ? [state.loop + 1] : range(last + 1).slice(state.loop + 1);
  return {prompt: Number($("prompt").value), loops: number("loops"), ...state.change, in_loops: inLoops};
}
async function post(path, body) {
  const response = await fetch(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `the server answered ${response.status}`);
  return answer;
}
async function ask() {
  const turn = ++state.asked;
  say("running …");
  try {
    const packed = await post("view", {prompts: prompts(), options: options()});
    if (turn !== state.asked) return;
    fill("prompt", range(packed.nPrompts).map((i) => [i, i]), packed.prompt);
    show(packed);
  } catch (error) {
    if (turn === state.asked) say(error instanceof TypeError ? "the server does not answer: is loopprobe explore still running?" : error.message, true);
  }
}
function toggle(part, place) {
  const same = (one) => JSON.stringify(one) === JSON.stringify(place), there = state.change[part].some(same);
  state.change[part] = there ? state.change[part].filter((one) => !same(one)) : [...state.change[part], place];
  drawParts();
  ask();
}
function clicked(p) {
  const how = boot.live ? document.querySelector("[name=click]:checked")?.value ?? "focus" : "focus";
  if (how === "focus") { state.focus = p; drawFocus(); } else toggle(how, p);
}
function drawParts() {
  const made = [["attention", "attention"], ["mlps", "MLP"]].filter(([part]) => boot.able[part]).flatMap(([part, word]) => range(boot.layers).map((layer) => {
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: `${word} of layer ${layer}`, onclick: () => toggle(part, layer)});
    button.classList.toggle("off", state.change[part].includes(layer));
    return button;
  }));
  $("parts").replaceChildren(...(made.length ? ["take out: ", ...made] : []));
}
async function measureEffects() {
  say("patching …");
  $("measure-effects").disabled = true;
  try {
    const found = await post("effects", {prompts: prompts(), options: {prompt: Number($("prompt").value), loops: number("loops")}, corruption: $("corruption").value, exact: Boolean($("exact").value)});
    say(view.told);
    view.effects = found;
    drawEffects();
  } catch (error) { say(error.message, true); }
  $("measure-effects").disabled = false;
}

// The page starts.
document.querySelectorAll(".live").forEach((one) => { one.hidden = !boot.live; });
for (const [name, has] of Object.entries({...boot.offers, ...boot.able})) document.querySelectorAll(`[data-needs=${name}]`).forEach((one) => { one.hidden ||= !has; });
const clicks = ["reset", "hide"].find((name) => boot.able[name]) ?? "focus";
document.querySelector(`[name=click][value=${clicks}]`).checked = true;
for (const name of ["seed", "length", "loops", "text"]) $(name).value = boot.asked[name] ?? "";
fill("prompt", boot.shown.map((i) => [i, i]), boot.shown[0]);
fill("corruption", boot.corruptions.map((name) => [name, name]));
$("effects-section").hidden = !(boot.live && boot.corruptions.length) && !Object.values(boot.views).some((one) => one.effects);
if (boot.live) drawParts();
$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("prompt").onchange = () => boot.live ? ask() : show(boot.views[$("prompt").value]);
$("loop").oninput = () => setLoop(Number($("loop").value) - 1);
$("loop").onchange = $("where").onchange = () => { if (boot.live && $("where").value !== "all" && Object.values(state.change).some((part) => part.length)) ask(); };
$("run").onchange = () => { $("pattern-run").value = $("run").value; draw(); };
$("measure").onchange = drawError;
$("axes").onchange = drawPath;
$("head").onchange = () => { state.head = Number($("head").value); drawFocus(); };
$("pattern-run").onchange = drawPattern;
$("clear").onclick = () => { state.change = none(); drawParts(); ask(); };
$("measure-effects").onclick = measureEffects;
$("play").onclick = () => {
  if (timer) { clearInterval(timer); timer = null; } else {
    if (state.loop === view.loops.length - 1) setLoop(0);
    timer = setInterval(() => { if (state.loop >= view.loops.length - 1) $("play").onclick(); else setLoop(state.loop + 1); }, 350);
  }
  $("play").textContent = timer ? "❚❚" : "▶";
};
dark.addEventListener("change", draw);
addEventListener("load", () => {
  show(boot.views[boot.shown[0]]);
  $("path").on?.("plotly_click", (event) => { const p = event.points[0].customdata; if (event.points[0].curveNumber === 1) { state.focus = p; drawFocus(); } });
  $("pattern").on?.("plotly_click", (event) => { state.focus = Number(event.points[0].y); drawFocus(); });
});
