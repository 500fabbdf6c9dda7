import DataTable from "datatables";

// A table scrolls below its buttons, whose lists would be cut off otherwise.
function scrollInside(table) {
  const outer = table.table().container().closest(".wide"), inner = outer.querySelector(".dt-layout-table");
  for (const name of ["tabindex", "role", "aria-label"]) {
    inner.setAttribute(name, outer.getAttribute(name));
    outer.removeAttribute(name);
  }
}

// What a table shows: headings and rows of texts, without hidden columns, filtered rows and the links to single seeds.
function texts(table) {
  const columns = table.columns(":visible").indexes().toArray();
  const text = node => {
    const copy = node.cloneNode(true);
    for (const link of copy.querySelectorAll("a.seed")) link.remove();
    return copy.textContent.trim().replace(/\s+/g, " ");
  };
  const rows = table.rows({ search: "applied" }).indexes().toArray();
  return [columns.map(column => text(table.column(column).header())),
    ...rows.map(row => columns.map(column => text(table.cell(row, column).node())))];
}
function csv(lines) {
  // A spreadsheet takes a text that begins so for a formula, unless it is a number.
  const inert = value => /^[=+@\t\r-]/.test(value) && !/^[+-][\d.,]+( ± [\d.,]+)?$/.test(value) ? `'${value}` : value;
  const quoted = value => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  return lines.map(line => line.map(inert).map(quoted).join(",")).join("\n") + "\n";
}
const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
  "|": "\\textbar{}", "±": "$\\pm$", "Δ": "$\\Delta$", "\u2212": "$-$", "\u2013": "--", "†": "$^\\dagger$" };
function latex(lines) {
  const escaped = value => value.replace(/[&%$#_{}]|[\\~^<>|±Δ\u2212\u2013†]/g, found => LATEX[found] ?? `\\${found}`);
  const [head, ...rows] = lines.map(line => line.map(escaped).join(" & ") + " \\\\");
  return ["% needs \\usepackage{booktabs}", `\\begin{tabular}{${"l".repeat(lines[0].length)}}`, "\\toprule", head, "\\midrule",
    ...rows, "\\bottomrule", "\\end{tabular}", ""].join("\n");
}
function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function buttons(name) {
  return [
    { extend: "colvis", text: "Columns", background: false },
    { text: "CSV", action: (event, table) => save(`${name}.csv`, csv(texts(table))) },
    { text: "LaTeX", action: (event, table) => save(`${name}.tex`, latex(texts(table))) },
  ];
}

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.onchange = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.onchange();

// Tables: sorted by their headings, searched by a box, filtered together with the figures.
// The buttons hide columns, and save what is shown then.
const tables = [];
for (const name of ["winners", "comparison", "ranking", "tasks", "ablation"])
  if (document.getElementById(name)) {
    const table = new DataTable(`#${name}`, {
      paging: false, info: false, order: [], autoWidth: false,
      layout: { topStart: name === "winners" ? null : { buttons: buttons(name) }, topEnd: name === "winners" ? null : "search" },
    });
    scrollInside(table);
    tables.push([table, (data, index) => table.row(index).node().dataset.block]);
  }
const span = document.createElement("span");
function escaped(text) {
  span.textContent = text;
  return span.innerHTML;
}
const titles = JSON.parse(document.getElementById("model-titles").textContent);
const number = digits => DataTable.render.number(",", ".", digits).display;
const shown = [
  model => escaped(titles[model]), escaped, sparsity => `${Math.round(100 * sparsity)}`,
  (method, line) => `<a href="#${escaped(`${line[0]}/${line[1]}/s${line[2]}/${method}/seed${line[4]}`)}">${escaped(method)}</a>`,
  seed => seed, state => `<span class="${state.split(":")[0]}">${escaped(state)}</span>`,
  ...[...document.querySelectorAll("#cells [data-digits]")].map(heading => number(Number(heading.dataset.digits))),
];
const cells = new DataTable("#cells", {
  data: JSON.parse(document.getElementById("cell-lines").textContent),
  order: [], autoWidth: false, deferRender: true, pageLength: 25,
  columns: shown.map((show, i) => ({
    data: i, type: i > 5 || i === 2 || i === 4 ? "num" : "string",
    render: (value, type, line) => type === "display" ? (value === null ? "\u2013" : show(value, line)) : value,
  })),
});
scrollInside(cells);
tables.push([cells, data => data.slice(0, 3).join("|")]);

const filters = document.getElementById("filters");
function wanted(block) {
  const [model, granularity, sparsity] = block.split("|");
  const chosen = new FormData(filters), dense = sparsity === "0.00";
  return [["model", model], ["granularity", granularity], ["sparsity", sparsity]].every(
    ([name, value]) => !value || !chosen.get(name) || chosen.get(name) === value || (name === "sparsity" && dense));
}
function filter() {
  for (const [table, block] of tables)
    table.search.fixed("grid", (text, data, index) => wanted(block(data, index))).draw();
  for (const panel of document.querySelectorAll(".panel")) panel.hidden = !wanted(panel.dataset.block);
}
filters.onchange = filter;
filters.onreset = () => setTimeout(filter);

// One cell: its data is unpacked when a reader first opens one, and shown as text only.
let packed;
async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("cell-details").textContent), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
const dialog = document.getElementById("cell");
async function open() {
  const path = decodeURIComponent(location.hash.slice(1));
  const cell = (await (packed ??= unpack()))[path];
  if (!cell) return dialog.close();
  const close = element("button", "Close"), title = element("h2", path);
  close.onclick = () => dialog.close();
  title.id = "cell-title";
  const block = (heading, body) => element("details", element("summary", heading), body);
  const evidence = Object.entries(cell.evidence).map(([name, pairs]) => block(name, element("table",
    ...pairs.map(([key, value]) => element("tr", element("th", key), element("td", value))))));
  const logs = Object.entries(cell.logs).map(([step, text]) => block(`log of ${step}`, element("pre", text)));
  dialog.replaceChildren(close, title, element("p", cell.reason ? `${cell.status}: ${cell.reason}` : cell.status),
    ...cell.notes.map(note => element("p", element("strong", note))),
    ...(cell.commands.length ? [element("h3", "Repeat this cell"), element("pre", cell.commands.join("\n"))] : []),
    ...evidence, ...logs,
    ...(cell.inputs.length ? [block("run these first if its inputs are missing", element("pre", cell.inputs.join("\n")))] : []));
  for (const part of dialog.querySelectorAll("details"))
    part.open = /^(figures|search cost|provenance)/.test(part.firstChild.textContent);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
dialog.onclose = () => history.replaceState(null, "", location.pathname + location.search);
addEventListener("hashchange", () => location.hash && open());
if (location.hash) open();
filter();
