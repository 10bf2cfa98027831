// Figures follow the page: light, dark, and light again on paper.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colours = new Map();  // of the lines of every figure, as they were drawn
const pen = document.createElement("canvas").getContext("2d");
function bright(colour, ink) {  // black becomes ink, and dark colours are mixed with white
  pen.fillStyle = colour;
  if (!/^#\w{6}$/.test(pen.fillStyle)) return colour;
  const parts = pen.fillStyle.match(/\w\w/g).map((part) => parseInt(part, 16));
  const light = (0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]) / 255, white = 1.4 * Math.max(0, 0.5 - light);
  return light === 0 ? ink : `rgb(${parts.map((part) => Math.round(part + (255 - part) * white)).join(", ")})`;
}
function theme(isDark) {
  return isDark ? {ink: "#e4e8ee", paper: "#14171b", grid: "#3a424c"} : {ink: "#2a3f5f", paper: "#ffffff", grid: "#EBF0F8"};
}
const unthemed = () => document.querySelectorAll(".js-plotly-plot:not(.themed)");  // others draw themselves in the theme's colours
function paint(isDark, plots = unthemed()) {
  const {ink, paper, grid} = theme(isDark);
  for (const plot of plots) {
    const look = {paper_bgcolor: paper, plot_bgcolor: paper, "font.color": ink, "title.font.color": ink};
    for (const key of Object.keys(plot.layout)) {
      if (/^[xy]axis\d*$/.test(key)) { look[key + ".gridcolor"] = grid; look[key + ".linecolor"] = grid; look[key + ".zerolinecolor"] = grid; }
    }
    Plotly.relayout(plot, look);
    if (!colours.has(plot)) colours.set(plot, plot.data.map((trace) => trace.line && trace.line.color));
    const lines = colours.get(plot).map((colour, i) => [i, colour]).filter(([, colour]) => typeof colour === "string");
    if (lines.length) Plotly.restyle(plot, {"line.color": lines.map(([, c]) => isDark ? bright(c, ink) : c)}, lines.map(([i]) => i));
  }
}
addEventListener("load", () => { if (dark.matches) paint(true); });
dark.addEventListener("change", (event) => paint(event.matches));
addEventListener("beforeprint", () => paint(false));
addEventListener("afterprint", () => paint(dark.matches));
