// Figures in a narrow window: their panels below one another, and below these their colour bars and legends.
(() => {
  const slim = matchMedia("(max-width: 899px)");
  const wide = new Map();  // the data and layout of every figure that was made narrow
  const LETTER = 7, LINE = 18;  // pixels
  const lines = (text) => text ? text.split("<br>").length : 0;
  const longest = (texts) => Math.max(0, ...Array.from(texts ?? [], (text) => typeof text === "string" ? text.length : 0));
  const wrap = (text, pixels) => (text ?? "").replace(/<br>/g, " ").split(" ").reduce((done, word) => {
    const longer = `${done.at(-1)} ${word}`;
    return done.length && longer.length * LETTER <= pixels ? [...done.slice(0, -1), longer] : [...done, word];
  }, []).join("<br>");
  const alike = (one, other) => Math.abs(one - other) < 1e-6;
  const named = (object, word) => Object.keys(object).filter((key) => RegExp(`^${word}\\d*$`).test(key));

  function panelsOf(layout) {  // in reading order; axes that are laid over others share their panel
    const panels = [];
    for (const key of named(layout, "yaxis")) {
      const y = layout[key], x = layout[`xaxis${(y.anchor ?? "x").slice(1)}`] ?? {};
      const [left, right] = x.domain ?? [0, 1], [bottom, top] = y.domain ?? [0, 1];
      const same = panels.find((one) => alike(one.left, left) && alike(one.top, top));
      if (same) { same.ys.push(y); same.xs.push(x); } else panels.push({xs: [x], ys: [y], left, right, bottom, top});
    }
    return panels.sort((one, other) => other.top - one.top || one.left - other.left);
  }

  function name(panels, layout) {  // what the first panel of a row and the first and last of a column tell of others
    const tell = (axis, other) => {
      if (axis === other || axis.title?.text) return;
      const keys = axis.ticktext ? ["title"] : ["title", "tickmode", "tickvals", "ticktext", "tickangle"];
      for (const key of keys) if (other[key] !== undefined) axis[key] = other[key];
      axis.showticklabels = other.showticklabels ?? true;
    };
    const heads = (layout.annotations ?? []).filter((note) => note.yref === "paper");
    for (const panel of panels) {
      panel.head = heads.find((note) => alike(note.y, panel.top) && alike(note.x, (panel.left + panel.right) / 2));
      const above = panel.head ? null : panels.find((one) => alike(one.left, panel.left) && one.head);
      if (above) layout.annotations.push(panel.head = {...above.head});
      tell(panel.ys[0], panels.find((one) => alike(one.top, panel.top)).ys[0]);
      tell(panel.xs[0], panels.findLast((one) => alike(one.left, panel.left)).xs[0]);
    }
  }

  function stack(layout, data, width) {  // returns the pixels of all panels, and of what stands below the last
    const panels = panelsOf(layout), before = (layout.height ?? 450) - 180;
    const words = Math.max(longest(data.flatMap((trace) => Array.from(trace.y ?? []))), ...panels.map(({ys}) => longest(ys[0].ticktext)));
    const side = Math.min(width / 2, LETTER * words);
    name(panels, layout);
    let high = 0, foot = 0;
    for (const panel of panels) {
      const {xs: [x], head, top, bottom} = panel;
      if (head) Object.assign(head, {text: wrap(head.text, width), x: 0.5, font: {...head.font, size: 12}});
      if (x.title?.text) x.title = {...x.title, text: wrap(x.title.text, width - side - 90)};
      panel.begin = high + foot + LINE * lines(head?.text) + 6;
      high = panel.begin + Math.min(420, Math.max(230, before * (top - bottom)));
      panel.end = high;
      const texts = x.ticktext ?? (data.some((trace) => trace.orientation === "h") ? [] : data.flatMap((trace) => Array.from(trace.x ?? [])));
      const ticks = x.tickangle || longest(texts) * new Set(texts).size * LETTER > width - side ? LETTER * longest(texts) : 0;
      foot = 14 + Math.max(LINE, ticks) + LINE * lines(x.title?.text) + 14;
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
    const [high, foot] = stack(layout, data, width);
    const coloured = (axis) => data.find((one) => (one.coloraxis ?? one.marker?.coloraxis) === axis);
    const head = (axis) => {  // of the panel that such colours fill
      const trace = coloured(axis), y = layout[`yaxis${(trace?.yaxis ?? "y").slice(1)}`];
      return layout.annotations?.find((note) => note.yref === "paper" && alike(note.y, y?.domain?.[1] ?? 1))?.text;
    };
    let room = foot + (layout.sliders?.length ? 70 + (layout.sliders[0].pad?.t ?? 20) : 0);
    const flat = (bar, words) => {
      const y = -room / high, title = {...bar?.title, side: "top", text: wrap(bar?.title?.text ?? words, width)};
      room += 50 + LINE * lines(title.text);
      return {...bar, title, y, orientation: "h", x: 0.5, xanchor: "center", yanchor: "top", len: 0.95, lenmode: "fraction", thickness: 12};
    };
    const scales = named(layout, "coloraxis").filter((key) => coloured(key) && layout[key].showscale !== false);
    for (const key of scales) layout[key].colorbar = flat(layout[key].colorbar, scales.length > 1 ? head(key) : "");
    for (const part of data.flatMap((trace) => [trace, trace.marker ?? {}])) {
      if (part.colorbar && part.showscale !== false) part.colorbar = flat(part.colorbar);
    }
    const told = data.filter((trace) => trace.name && (trace.showlegend ?? data.length > 1));
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
    const r = 16 + LETTER * longest(beside.flatMap((note) => note.text.split("<br>")));
    const menus = layout.updatemenus?.length ? 48 : 0;  // between the title and the panels
    for (const menu of layout.updatemenus ?? []) Object.assign(menu, {x: 0, xanchor: "left", y: 1 + 14 / high, yanchor: "bottom", pad: {}});
    const text = wrap(layout.title?.text, width - 30), top = 34 + 19 * lines(text) + menus;
    layout.title = {...layout.title, text, font: {...layout.title?.font, size: 14}};
    if (layout.width) layout.width = Math.max(width, layout.width - 90);  // a table of words, which is scrolled
    Object.assign(layout, {margin: {t: top, b: room + 10, l: 56, r}, height: top + high + room + 10});
  }

  function fit() {
    const plots = [...document.querySelectorAll(".js-plotly-plot:not(.themed)")].filter((plot) => slim.matches !== wide.has(plot));
    for (const plot of plots) {
      let {data, layout} = wide.get(plot) ?? plot;
      wide.delete(plot);
      if (slim.matches) {
        layout.height ??= parseFloat(plot.parentElement.style.height);  // which a figure that fits its window forgets when that changes
        wide.set(plot, {data, layout});
        layout = structuredClone(layout);
        data = data.map((trace) => ({...trace, ...(trace.marker && {marker: {...trace.marker}})}));
        narrow(data, layout, Math.min(plot.clientWidth || innerWidth - 40, innerWidth));
      }
      // Not react, after which what stood beside the panels still takes its room.
      const own = layout.width && !slim.matches ? `${layout.width}px` : "100%";
      Object.assign(plot.parentElement.style, {height: `${layout.height}px`, width: own, overflowX: "auto"});
      Plotly.newPlot(plot, {data, layout, frames: plot._transitionData?._frames, config: {responsive: true, displaylogo: false}});
    }
    if (plots.length && typeof paint === "function") paint(dark.matches);  // in the colours of theme.js
  }
  addEventListener("load", fit);
  slim.addEventListener("change", fit);
})();
