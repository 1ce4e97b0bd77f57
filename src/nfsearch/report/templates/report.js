"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const label = (key) => data.axes.find((axis) => axis.key === key).label;
  const figure = (value) => (value == null ? "–" : Math.abs(value) >= 1e5 ? value.toLocaleString("en") : String(Number(value.toPrecision(4))));
  const narrow = () => window.innerWidth <= 640;
  const palette = ["#2b7fb8", "#d97706", "#14857a", "#c8435a", "#8657b8", "#6f8f1f", "#b1567b", "#4f9fc9", "#a16207", "#64748b"];
  const config = {
    responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  // A hover label is as wide as its longest line, so long notation is broken between words.
  function wrap(words, width) {
    const lines = [""];
    for (const word of words.split(" ")) {
      if (lines[lines.length - 1].length + word.length > width && lines[lines.length - 1]) lines.push("");
      lines[lines.length - 1] += (lines[lines.length - 1] ? " " : "") + word;
    }
    return lines.map(text).join("<br>");
  }

  function layout(x, y, more) {
    const axis = (title) => ({
      title: { text: text(title), font: { size: 13 } }, gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true,
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: narrow() ? false : "zoom",
      font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12, color: css("--soft") },
      margin: { l: 56, r: 12, t: 12, b: 48 }, xaxis: axis(x), yaxis: axis(y),
      showlegend: false, modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent") },
      hoverlabel: { align: "left", bgcolor: css("--card"), bordercolor: css("--faint"), font: { color: css("--ink"), size: 12.5 } },
      ...more,
    };
  }

  // The plot, and under it a legend that wraps like text; its entries turn traces off and on.
  function show(id, traces, page) {
    const legend = find(id + "-legend"), off = new Set(legend ? (legend.dataset.off || "").split("\n") : []);
    Plotly.react(id, traces.map((trace) => ({ ...trace, visible: !off.has(trace.name) })), page, config);
    if (!legend) return;
    legend.replaceChildren(...traces.map((trace) => {
      const entry = document.createElement("button"), mark = document.createElement("i");
      entry.type = "button";
      entry.setAttribute("aria-pressed", String(!off.has(trace.name)));
      mark.className = trace.mode === "lines" ? "dash" : "";
      const colour = trace.mode === "lines" ? trace.line.color : trace.marker.color;
      if (trace.marker && trace.marker.symbol === "circle-open") mark.style.boxShadow = "inset 0 0 0 2px " + colour;
      else mark.style.backgroundColor = colour;
      entry.append(mark, trace.name);
      entry.addEventListener("click", () => {
        if (!off.delete(trace.name)) off.add(trace.name);
        legend.dataset.off = [...off].join("\n");
        show(id, traces, page);
      });
      return entry;
    }));
  }

  const rank = (point) => ({
    mixers: point.mixers, origin: point.origin, generation: "generation " + point.generation,
  });

  function groups(points, by) {
    const made = new Map();
    for (const point of points) {
      const key = rank(point)[by];
      made.set(key, [...(made.get(key) || []), point]);
    }
    let list = [...made.entries()];
    if (by === "generation") return list.sort((a, b) => a[1][0].generation - b[1][0].generation);
    list.sort((a, b) => b[1].length - a[1].length || (a[0] < b[0] ? -1 : 1));
    if (list.length <= palette.length) return list;
    const rest = list.splice(palette.length - 1).flatMap((entry) => entry[1]);
    return [...list, ["other", rest]];
  }

  function hover(point) {
    const values = data.axes.filter((axis) => point.values[axis.key] != null).map((axis) => {
      const error = point.errors[axis.key];
      return text(axis.label) + " <b>" + figure(point.values[axis.key]) + "</b>" + (error == null ? "" : " ± " + figure(error));
    });
    return ["<b>#" + point.number + "</b>" + (point.front ? " ★ on the front" : ""), wrap(point.notation, narrow() ? 30 : 48),
      "width " + point.width, ...values, text(point.made) + ", generation " + point.generation].join("<br>");
  }

  function drawFront() {
    const x = find("axis-x").value, y = find("axis-y").value, by = find("colour").value;
    const points = data.points.filter((point) => point.values[x] != null && point.values[y] != null);
    const listed = groups(points, by);
    const shade = (i) => by !== "generation" ? palette[i] : `hsl(${200 - 160 * (i / Math.max(1, listed.length - 1))}, 65%, 48%)`;
    const traces = listed.map(([name, members], i) => ({
      type: "scatter", mode: "markers", name, x: members.map((p) => p.values[x]), y: members.map((p) => p.values[y]),
      customdata: members.map((p) => p.number), hovertext: members.map(hover), hoverinfo: "text",
      marker: {
        color: shade(i), size: members.map((p) => (p.front ? 13 : 8)), opacity: members.map((p) => (p.front ? 1 : 0.6)),
        symbol: members.map((p) => (p.front ? "star" : "circle")), line: { color: css("--card"), width: 1 },
      },
    }));
    // The lower-left staircase of the two axes shown; with two objectives that is the front itself.
    const stairs = [];
    for (const point of [...points].sort((a, b) => a.values[x] - b.values[x] || a.values[y] - b.values[y])) {
      if (!stairs.length || point.values[y] < stairs[stairs.length - 1].values[y]) stairs.push(point);
    }
    const exact = data.objectives.length === 2 && data.objectives.includes(x) && data.objectives.includes(y);
    traces.unshift({
      type: "scatter", mode: "lines", name: exact ? "Pareto front" : "best of these two axes", hoverinfo: "skip",
      x: stairs.map((p) => p.values[x]), y: stairs.map((p) => p.values[y]), line: { shape: "hv", color: css("--accent"), width: 1.5 },
      error_x: { type: "data", array: stairs.map((p) => p.errors[x] || 0), color: css("--faint"), thickness: 1, width: 3, visible: stairs.some((p) => p.errors[x]) },
    });
    const moved = points.filter((p) => p.front && p.estimates[x] != null);
    if (moved.length) traces.push(hollow("estimated", moved.map((p) => [[p.estimates[x], p.values[y]], [p.values[x], p.values[y]]])));
    const far = Math.max(...points.map((p) => p.values[x]));
    const range = span(points.flatMap((p) => [p.values[x], ...(p.front && p.estimates[x] != null ? [p.estimates[x]] : [])]));
    const budget = data.limits[x] <= 1.3 * far ? data.limits[x] : null;  // a distant limit would squeeze the points
    const shapes = budget == null ? [] : [{ type: "line", x0: budget, x1: budget, yref: "paper", y0: 0, y1: 1, line: { color: css("--warn"), width: 1, dash: "dash" } }];
    const annotations = budget == null ? [] : [{ x: budget, yref: "paper", y: 1, text: "limit", showarrow: false, xanchor: "right", xshift: -4, font: { color: css("--warn") } }];
    const page = layout(label(x), label(y), { shapes, annotations });
    page.xaxis.range = budget == null ? range : [Math.min(range[0], budget), Math.max(range[1], budget * 1.01)];
    show("plot-front", traces, page);
  }

  // An axis that holds the points: bars of estimates that nobody can trust would squeeze them.
  function span(values) {
    const low = Math.min(...values), high = Math.max(...values), room = 0.05 * (high - low || Math.abs(high) || 1);
    return [low - room, high + room];
  }

  // Hollow points where figures were before they were measured, each with a thin line to where it is now.
  function hollow(name, pairs) {
    return {
      type: "scatter", mode: "lines+markers", name, hoverinfo: "skip",
      x: pairs.flatMap(([before, now]) => [before[0], now[0], null]), y: pairs.flatMap(([before, now]) => [before[1], now[1], null]),
      line: { color: css("--faint"), width: 1 },
      marker: {
        symbol: "circle-open", color: css("--soft"), size: pairs.flatMap(() => [8, 0, 0]), line: { width: 1.5 },
      },
    };
  }

  function drawConfirmed() {
    if (!data.confirmed.length) return;
    const front = data.confirmed.filter((p) => p.front), off = data.confirmed.filter((p) => !p.front);
    const about = new Map(data.points.map((p) => [p.number, p]));
    const bars = (array, color) => ({ type: "data", array, color, thickness: 1.3, width: 4 });
    const group = (name, members, color) => ({
      type: "scatter", mode: "markers+text", name, x: members.map((p) => p.x), y: members.map((p) => p.y),
      text: members.map((p) => "#" + p.number), textposition: "top right", hoverinfo: "text",
      hovertext: members.map((p) => ["<b>#" + p.number + "</b>", wrap(about.get(p.number).notation, narrow() ? 30 : 48), "width " + about.get(p.number).width,
        text(label(data.x)) + " <b>" + figure(p.x) + "</b> ± " + figure(p.x_error), text(label(data.y)) + " <b>" + figure(p.y) + "</b> ± " + figure(p.y_error)].join("<br>")),
      error_x: bars(members.map((p) => p.x_error), color), error_y: bars(members.map((p) => p.y_error), color),
      marker: { color, size: 11, line: { color: css("--card"), width: 1 } },
    });
    const traces = [hollow("as the search had them: time estimated, one seed", data.confirmed.map((p) => [p.before, [p.x, p.y]]))];
    if (data.objectives.length === 2) {
      traces.push({ type: "scatter", mode: "lines", name: "confirmed front", hoverinfo: "skip", x: front.map((p) => p.x), y: front.map((p) => p.y), line: { shape: "hv", color: css("--accent"), width: 1.5 } });
    }
    traces.push(group("on the confirmed front", front, css("--accent")));
    if (off.length) traces.push(group("off it", off, css("--warn")));
    const page = layout(label(data.x), label(data.y));
    page.xaxis.range = span(data.confirmed.flatMap((p) => [p.x, p.before[0]]));
    show("plot-confirmed", traces, page);
  }

  function pick(number) {
    const point = data.points.find((p) => p.number === number);
    const lines = [
      `#${number}${point.front ? " ★ on the front" : ""}: ${point.made}, generation ${point.generation}` + (point.parents.length ? `, from ${point.parents.map((p) => "#" + p).join(" and ")}` : ""),
      `${point.notation} @ ${point.width}`,
      data.axes.filter((axis) => point.values[axis.key] != null).map((axis) => `${axis.label} ${figure(point.values[axis.key])}`).join(", "),
    ];
    const box = find("picked");
    box.replaceChildren(...lines.map((line, i) => {
      const p = document.createElement("p");
      p.textContent = line;
      if (i === 1) p.className = "mono";
      return p;
    }));
    const link = document.createElement("a");
    link.href = "#c" + number;
    link.textContent = "Its row in the table of all candidates";
    box.append(link);
    document.querySelectorAll("tr.picked").forEach((row) => row.classList.remove("picked"));
    find("c" + number).classList.add("picked");
  }

  function drawProgress() {
    const y = data.y, line = (color) => ({ shape: "hv", color, width: 2 });
    const steps = (pairs) => !pairs.length ? { x: [], y: [] } : ({ x: [...pairs.map((p) => p[0]), data.evaluations], y: [...pairs.map((p) => p[1]), pairs[pairs.length - 1][1]] });
    show("plot-best", [
      { type: "scatter", mode: "markers", name: "each candidate", x: data.points.map((p) => p.place), y: data.points.map((p) => p.values[y]),
        hovertext: data.points.map(hover), hoverinfo: "text", marker: { size: 6, color: css("--faint") } },
      { type: "scatter", mode: "lines", name: "best so far", hoverinfo: "x+y", line: line(css("--accent")), ...steps(data.best) },
    ], layout("evaluations finished", label(y)));
    show("plot-volume", [
      { type: "scatter", mode: "lines", name: "hypervolume", hoverinfo: "x+y", line: line(css("--accent")), ...steps(data.hypervolume) },
    ], layout("evaluations finished", data.volume));
    show("plot-curves", data.curves.map((curve, i) => ({
      type: "scatter", mode: "lines", name: "#" + curve.number, x: curve.tokens, y: curve.loss,
      hovertemplate: "#" + curve.number + ": %{y:.3f} after %{x:.3s} tokens<extra></extra>", line: { color: palette[i % palette.length], width: 1.6, dash: i < palette.length ? "solid" : "dot" },
    })), layout("tokens", "training loss (nats per token)"));
  }

  function drawCheck() {
    if (!find("plot-check")) return;
    const names = [...new Set(data.check.map((row) => row.workload))];
    const all = data.check.flatMap((row) => [row.measured_ms, row.estimated_ms]);
    const ends = [Math.min(...all) * 0.9, Math.max(...all) * 1.1];
    const traces = names.map((name, i) => {
      const rows = data.check.filter((row) => row.workload === name);
      return {
        type: "scatter", mode: "markers", name, x: rows.map((r) => r.measured_ms), y: rows.map((r) => r.estimated_ms), hoverinfo: "text",
        hovertext: rows.map((r) => wrap(r.architecture, 48) + "<br>measured <b>" + figure(r.measured_ms) + "</b> ms, estimated <b>" + figure(r.estimated_ms) + "</b> ms"),
        marker: { size: 9, color: palette[i % palette.length], line: { color: css("--card"), width: 1 } },
      };
    });
    traces.unshift({ type: "scatter", mode: "lines", name: "equal", x: ends, y: ends, hoverinfo: "skip", line: { color: css("--faint"), width: 1, dash: "dash" } });
    const page = layout("measured (ms)", "estimated (ms)");
    if (ends[1] / ends[0] > 30) page.xaxis.type = page.yaxis.type = "log";
    show("plot-check", traces, page);
  }

  function draw() {
    drawConfirmed();
    if (data.points.length) { drawFront(); drawProgress(); }
    drawCheck();
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[i].dataset.v === undefined ? row.cells[i].textContent : Number(row.cells[i].dataset.v);
      const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * order(value(a), value(b))));
    }));
    find("search").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
        shown += !row.hidden;
      }
      find("shown").textContent = shown + " shown";
    });
  }

  draw();
  if (data.points.length) {
    sortable(find("all"));
    find("plot-front").on("plotly_click", (event) => { if (event.points[0].customdata !== undefined) pick(event.points[0].customdata); });
    for (const id of ["axis-x", "axis-y", "colour"]) {
      find(id).addEventListener("change", () => { find("plot-front-legend").dataset.off = ""; drawFront(); });
    }
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.addEventListener("click", (event) => {
    if (!event.target.matches(".copy")) return;
    const code = event.target.previousElementSibling;
    const done = () => { event.target.textContent = "copied"; setTimeout(() => { event.target.textContent = "copy"; }, 1500); };
    const select = () => getSelection().selectAllChildren(code);  // pages opened from a file may not reach the clipboard
    navigator.clipboard ? navigator.clipboard.writeText(code.textContent).then(done, select) : select();
  });
})();
