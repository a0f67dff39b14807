(function () {
  "use strict";
  document.documentElement.classList.add("js");
  const data = JSON.parse(document.getElementById("page-data").textContent);

  function make(tag, text, name) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  }

  /* tables: a button in each header sorts by its column, numbers as numbers, empty cells last */
  function key(cell) {
    const text = cell ? cell.textContent.trim() : "-";
    const number = parseFloat(text.replace(/^[<[]+/, ""));
    return { text, number, empty: text === "-" || text === "" };
  }
  function sort(table, column, header) {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: key(row.cells[column]) }));
    const numeric = rows.every((each) => each.key.empty || !Number.isNaN(each.key.number));
    rows.sort((a, b) => {
      if (a.key.empty || b.key.empty) return a.key.empty - b.key.empty;
      const order = numeric ? a.key.number - b.key.number : a.key.text.localeCompare(b.key.text);
      return up ? order : -order;
    });
    for (const each of rows) table.tBodies[0].append(each.row);
  }
  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
      if (!header.textContent.trim()) return;
      const button = make("button", header.textContent);
      button.type = "button";
      header.textContent = "";
      header.append(button);
      button.addEventListener("click", () => sort(table, column, header));
    });
  }

  /* samples that a mask changed, in a dialog: text is set as text, never as markup */
  const dialog = document.getElementById("samples");
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  function line(list, name, value, kind) {
    list.append(make("dt", name), make("dd", value === "" ? "(nothing)" : value, kind));
  }
  function describe(task, change) {
    const [id, fullAnswer, answer, fullScore, score] = change;
    const sample = task.samples[id];
    const node = make("div", undefined, "sample");
    const pictures = make("div", undefined, "pictures");
    for (const name of sample ? sample.images : []) {
      const image = make("img");
      image.src = task.images[name];
      image.alt = "image of sample " + id;
      pictures.append(image);
    }
    if (!pictures.children.length) pictures.append(make("span", sample ? "no image" : "not kept by this run", "note"));
    const words = make("div");
    words.append(make("p", sample ? sample.question : "sample " + id));
    const list = make("dl");
    if (sample) line(list, "reference", sample.references.join(" | "));
    line(list, "all blocks", fullAnswer + "  (" + fullScore + ")");
    line(list, "this mask", answer + "  (" + score + ")", score < fullScore ? "worse" : score > fullScore ? "better" : "");
    line(list, "sample", id);
    words.append(list);
    node.append(pictures, words);
    return node;
  }
  function blocks(mask) {
    const skipped = Array.from(mask).flatMap((bit, index) => (bit === "0" ? [index] : []));
    return skipped.length ? "without " + skipped.join(", ") : "all blocks";
  }
  function show(run, masks, only, title) {
    const body = dialog.querySelector("div");
    body.textContent = "";
    dialog.querySelector("h2").textContent = title;
    let found = 0;
    for (const task of data.runs[run].tasks) {
      if (only !== undefined && task.task !== only) continue;
      for (const mask of masks) {
        const changes = task.changes[mask];
        if (!changes) continue;
        found += 1;
        body.append(make("h3", task.task + ", " + blocks(mask)));
        const total = changes.worse + changes.better + changes.reworded;
        let text = total + " of the answers change: " + changes.worse + " score worse, " + changes.better + " better, "
          + changes.reworded + " are put otherwise.";
        if (total > changes.shown.length) text += " " + changes.shown.length + " are shown.";
        body.append(make("p", text, "note"));
        for (const change of changes.shown) body.append(describe(task, change));
      }
    }
    if (!found) body.append(make("p", "No answers of this mask are on record for the samples that are reported on.", "note"));
    dialog.showModal();
    dialog.scrollTop = 0;
  }
  for (const button of document.querySelectorAll("button[data-mask]")) {
    const { run, mask, task } = button.dataset;
    button.addEventListener("click", () => show(Number(run), [mask], task, "Samples that change " + blocks(mask)));
  }

  /* charts: drawn by Vega in place of the picture, without evaluating code; a click on a mark shows its samples */
  function label(datum) {
    if (datum.policy !== undefined && datum.blocks !== undefined) return datum.policy + ", " + datum.blocks;
    for (const field of ["block", "removed", "column"]) if (datum[field] !== undefined) return String(datum[field]);
    return undefined;
  }
  function wrap(node) {
    /* titles of axes in lines that fit a narrow page */
    for (const [name, value] of Object.entries(node)) {
      if (name === "title" && typeof value === "string") node[name] = value.match(/.{1,38}(\s|$)|\S+/g) || value;
      else if (value && typeof value === "object" && name !== "data") wrap(value);
    }
  }
  const wide = window.matchMedia("(min-width: 601px)");
  async function draw(node) {
    const { spec, run } = data.charts[Number(node.dataset.chart)];
    const figure = node.closest("figure");
    figure.classList.add("drawn");
    const copy = structuredClone(spec);
    if (!wide.matches) copy.config.legend = { ...copy.config.legend, orient: "bottom", columns: 2, labelLimit: 130 };
    if (!wide.matches) wrap(copy);
    const options = { actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
    try {
      const { view } = await window.vegaEmbed(node, copy, options);
      const known = run === null ? {} : data.runs[run].masks;
      figure.classList.toggle("clickable", Object.keys(known).length > 0);
      view.addEventListener("click", (event, item) => {
        const name = item && item.datum && ["symbol", "rect", "rule"].includes(item.mark.marktype) && label(item.datum);
        if (name && known[name]) show(run, known[name], item.datum.row, "Samples that change: " + name);
      });
    } catch (error) {
      figure.classList.remove("drawn");
      throw error;
    }
  }
  if (window.vegaEmbed) {
    const nodes = Array.from(document.querySelectorAll("[data-chart]"));
    const all = () => nodes.reduce((before, node) => before.then(() => draw(node)), Promise.resolve());
    let drawing = all();
    wide.addEventListener("change", () => { drawing = drawing.then(all); });
    drawing.then(() => document.documentElement.classList.add("ready"));
  } else {
    document.documentElement.classList.add("ready");
  }
})();
