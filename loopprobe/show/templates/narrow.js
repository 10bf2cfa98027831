// Figures in a narrow window: their panels below one another, and below these their colour bars and legends.
(() => {
  const slim = matchMedia("(max-width: 899px)");
  const near = new Set();  // figures in view or near it: a report has more than can be drawn at once
  const wide = new Map();  // the data and layout of every figure that was made narrow, and the width it was made for
  const LETTER = 7, LINE = 18;  // pixels
  const lines = (text) => text ? text.split("<br>").length : 0;
  const words = (texts) => Array.from(texts ?? []).filter((text) => typeof text === "string");
  const longest = (texts) => Math.max(0, ...words(texts).flatMap((text) => text.split("<br>").map((line) => line.length)));
  const wrap = (text, pixels) => (text ?? "").replace(/<br>/g, " ").split(" ").reduce((done, word) => {
    const longer = `${done.at(-1)} ${word}`;
    return done.length && longer.length * LETTER <= pixels ? [...done.slice(0, -1), longer] : [...done, word];
  }, []).join("<br>");
  const alike = (one, other) => Math.abs(one - other) < 1e-6;
  const named = (object, word) => Object.keys(object).filter((key) => RegExp(`^${word}\\d*$`).test(key));

  function panelsOf(layout, data) {  // in reading order; axes that are laid over others share their panel
    const panels = [];
    for (const key of named(layout, "yaxis")) {
      const id = key.replace("axis", ""), drawn = data.filter((trace) => (trace.yaxis ?? "y") === id);
      if (!drawn.length) continue;  // a cell of the grid that nothing fills
      const y = layout[key], x = layout[`xaxis${(y.anchor ?? "x").slice(1)}`] ?? {};
      const [left, right] = x.domain ?? [0, 1], [bottom, top] = y.domain ?? [0, 1];
      const same = panels.find((one) => alike(one.left, left) && alike(one.top, top));
      if (same) { same.xs.push(x); same.ys.push(y); same.drawn.push(...drawn); }
      else panels.push({xs: [x], ys: [y], id, drawn, left, right, bottom, top});
    }
    return panels.sort((one, other) => other.top - one.top || one.left - other.left);
  }

  function name(panels, layout) {  // what the first panel of a row and others of a column tell of an axis alike
    const tell = (axis, other) => {
      if (axis === other || axis.title?.text) return;
      for (const key of ["title", "tickmode", "tickvals", "ticktext", "tickangle"]) if (other[key] !== undefined) axis[key] = other[key];
      axis.showticklabels = true;
    };
    const heads = (layout.annotations ?? []).filter((note) => note.yref === "paper");
    for (const panel of panels) {
      const {xs: [x], ys: [y], left, right, top} = panel;
      panel.head = heads.find((note) => alike(note.y, top) && alike(note.x, (left + right) / 2));
      const above = panel.head ? null : panels.findLast((one) => alike(one.left, left) && one.top > top && one.head);
      if (above) layout.annotations.push(panel.head = {...above.head});
      const first = panels.find((one) => alike(one.top, top));
      if (y.showticklabels === false || (y.matches && [first.id, first.ys[0].matches].includes(y.matches))) tell(y, first.ys[0]);
      const ticks = ({ticktext, type}) => JSON.stringify([Array.from(ticktext ?? []), type ?? "linear"]);
      const below = panels.findLast((one) => alike(one.left, left) && one.xs[0].title?.text && ticks(one.xs[0]) === ticks(x));
      if (below) tell(x, below.xs[0]);
      x.showticklabels = true;
    }
  }

  function list(panel, room) {  // names along the vertical axis, in lines that leave room; returns the pixels of the longest
    const [y] = panel.ys, given = words(y.ticktext).length ? y.ticktext : [...new Set(panel.drawn.flatMap((trace) => words(trace.y)))];
    const isLong = (texts) => longest(texts) * LETTER > room;
    const short = Array.from(given, (text) => isLong([text]) ? wrap(text, room) : text);
    if (isLong(given)) Object.assign(y, {tickmode: "array", tickvals: y.ticktext ? y.tickvals : given, ticktext: short});
    panel.least = short.reduce((pixels, text) => pixels + 15 * lines(text) + 6, 0);
    return LETTER * longest(short);
  }

  function stack(layout, data, width) {  // returns the pixels of all panels, and of what stands below the last
    const panels = panelsOf(layout, data), before = (layout.height ?? 450) - 180;
    name(panels, layout);
    const side = Math.max(0, ...panels.map((panel) => list(panel, 0.4 * width)));
    let high = 0, foot = 0;
    for (const panel of panels) {
      const {xs: [x], head, top, bottom, drawn} = panel;
      if (head) Object.assign(head, {text: wrap(head.text, width), x: 0.5, font: {...head.font, size: 12}});
      if (x.title?.text) x.title = {...x.title, text: wrap(x.title.text, width - side - 90)};
      panel.begin = high + foot + LINE * lines(head?.text) + 6;
      high = panel.begin + Math.max(panel.least, Math.min(420, Math.max(230, before * (top - bottom))));
      panel.end = high;
      const texts = words(x.ticktext ?? drawn.flatMap((trace) => Array.from(trace.x ?? [])));
      const slanted = x.tickangle || longest(texts) * new Set(texts).size * LETTER > width - side;
      foot = 14 + Math.max(LINE, slanted ? LETTER * longest(texts) : 0) + LINE * lines(x.title?.text) + 14;
    }
    for (const {xs, ys, head, begin, end} of panels) {
      const domain = [Math.max(0, 1 - end / high), 1 - begin / high];
      for (const x of xs) x.domain = [0, 1];
      for (const y of ys) Object.assign(y, {domain, automargin: true, title: {...y.title, text: wrap(y.title?.text, end - begin)}});
      if (head) head.y = domain[1];
    }
    return panels.length ? [high, foot] : [before, 0];
  }

  function narrow(data, layout, width) {
    const [high, foot] = stack(layout, data, width), seen = data.filter((trace) => trace.visible !== false);
    const coloured = (axis) => data.find((one) => (one.coloraxis ?? one.marker?.coloraxis) === axis);
    const head = (axis) => {  // of the panel that such colours fill
      const y = layout[`yaxis${(coloured(axis)?.yaxis ?? "y").slice(1)}`];
      return layout.annotations?.find((note) => note.yref === "paper" && alike(note.y, y?.domain?.[1] ?? 1))?.text;
    };
    let room = foot + (layout.sliders?.length ? 70 + (layout.sliders[0].pad?.t ?? 20) : 0);
    const flat = (bar, fallback = "") => {
      const y = -room / high, title = {...bar?.title, side: "top", text: wrap(bar?.title?.text ?? fallback, width)};
      room += 50 + LINE * lines(title.text);
      return {...bar, title, y, orientation: "h", x: 0.5, xanchor: "center", yanchor: "top", len: 0.95, lenmode: "fraction", thickness: 12};
    };
    const scales = named(layout, "coloraxis").filter((key) => coloured(key) && layout[key].showscale !== false);
    for (const key of scales) layout[key].colorbar = flat(layout[key].colorbar, scales.length > 1 ? head(key) : undefined);
    let shown = null;  // those that a menu shows instead stand in the same place
    for (const trace of data) {
      const part = trace.colorbar ? trace : trace.marker;
      if (!part?.colorbar || part.showscale === false) continue;
      part.colorbar = shown && trace.visible === false ? shown : (shown = flat(part.colorbar));
    }
    const told = seen.filter((trace) => trace.name && (trace.showlegend ?? data.length > 1));
    for (const key of layout.showlegend === false ? [] : new Set(told.map((trace) => trace.legend ?? "legend"))) {
      layout[key] = {...layout[key], orientation: "v", x: 0, xanchor: "left", y: -room / high, yanchor: "top"};
      room += 20 * told.filter((trace) => (trace.legend ?? "legend") === key).length + 16;
    }
    for (const note of layout.annotations ?? []) {  // what stands below all panels
      if (note.yref !== "paper" || note.y + (note.yshift ?? 0) >= 0) continue;
      Object.assign(note, {text: wrap(note.text, width - 90), x: 0, y: -room / high, yshift: 0});
      room += LINE * lines(note.text) + 10;
    }
    const beside = layout.annotations?.filter((note) => note.xref === "paper" && note.x > 1) ?? [];
    const r = 16 + LETTER * longest(beside.map((note) => note.text));
    const menus = layout.updatemenus?.length ? 48 : 0;  // between the title and the panels
    for (const menu of layout.updatemenus ?? []) Object.assign(menu, {x: 0, xanchor: "left", y: 1 + 14 / high, yanchor: "bottom", pad: {}});
    const text = wrap(layout.title?.text, width - 30), top = 52 + 19 * lines(text) + menus;
    layout.title = {...layout.title, text, font: {...layout.title?.font, size: 14}, pad: {...layout.title?.pad, t: 42}};  // below the buttons
    if (layout.width) layout.width = Math.max(width, layout.width - 90);  // a table of words, which is scrolled
    Object.assign(layout, {margin: {t: top, b: room + 10, l: 56, r}, height: top + high + room + 10});
  }

  function fit() {
    const fitted = [];
    for (const plot of near) {
      const frame = plot.parentElement, width = Math.min(frame.parentElement.clientWidth || innerWidth - 40, innerWidth);
      const before = wide.get(plot);
      if (slim.matches ? Math.abs(before?.width - width) < LETTER : !before) continue;
      let {data, layout} = before ?? plot;
      const hidden = plot.data.map((trace) => trace.visible === "legendonly");
      wide.delete(plot);
      layout.height ??= plot._fullLayout.height;  // which plotly forgets when the window's size changes
      if (slim.matches) {
        wide.set(plot, {data, layout, width});
        layout = structuredClone(layout);
      }
      data = data.map((trace, i) => ({  // what the reader has hidden stays so
        ...trace, ...(trace.marker && {marker: {...trace.marker}}),
        visible: hidden[i] ? "legendonly" : trace.visible === "legendonly" ? true : trace.visible,
      }));
      if (slim.matches) narrow(data, layout, width);
      const own = layout.width && !slim.matches ? `${layout.width}px` : "100%";
      Object.assign(frame.style, {height: `${layout.height}px`, width: own, overflowX: "auto"});
      Object.assign(plot.style, {height: "100%", width: "100%"});
      // Not react, after which what stood beside the panels still takes its room.
      Plotly.newPlot(plot, {data, layout, frames: plot._transitionData?._frames, config: {{ plot_config | tojson }}});
      fitted.push(plot);
    }
    if (typeof paint === "function") paint(dark.matches, fitted);  // in the colours of theme.js
  }
  const watch = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) if (isIntersecting) near.add(target); else near.delete(target);
    fit();
  }, {rootMargin: "800px"});
  let later;
  addEventListener("load", () => { for (const plot of document.querySelectorAll(".js-plotly-plot:not(.themed)")) watch.observe(plot); });
  addEventListener("resize", () => { clearTimeout(later); later = setTimeout(fit, 250); });
  slim.addEventListener("change", fit);
})();
