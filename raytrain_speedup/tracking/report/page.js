// Tables that sort, tips that appear at once, and a row that lights up with its point. Without it the page can be read.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column], number = parseFloat(cell.dataset.key);
    return cell.dataset.key === undefined ? (cell.classList.contains("number") ? null : cell.textContent) : number;
  };
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending" && column > 0;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (one, other) => {
      const a = key(one, column), b = key(other, column);
      if (a === null || b === null) return (a === null) - (b === null);
      return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
  }));
}
// Paper cannot be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => one.open = true));
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const mark of document.querySelectorAll("svg [data-run], svg .front")) {
  const title = mark.querySelector("title"), text = title ? title.textContent : "";
  if (title) title.remove();
  mark.setAttribute("aria-label", text);
  const same = document.querySelectorAll(`[data-run="${CSS.escape(mark.dataset.run)}"]`);
  const show = on => {
    same.forEach(other => other.classList.toggle("lit", on));
    tip.hidden = !on || !text;
    if (tip.hidden) return;
    tip.textContent = text;
    const box = mark.getBoundingClientRect(), wide = tip.offsetWidth, high = tip.offsetHeight;
    tip.style.left = Math.max(8, Math.min(innerWidth - wide - 8, box.left + box.width / 2 - wide / 2)) + "px";
    tip.style.top = (box.top > high + 12 ? box.top - high - 8 : box.bottom + 8) + "px";
  };
  for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, () => show(true));
  for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, () => show(false));
}
