"use strict";
for (const choices of document.querySelectorAll(".choices")) choices.hidden = false;

// Crops: compare two versions on either side of a divider.
function showVersion(side, version) {
  for (const frame of document.querySelectorAll(".compare")) {
    const tag = frame.querySelector(`.tag.${side}`);
    for (const image of frame.querySelectorAll("img")) {
      const chosen = image.dataset.version === version;
      image.classList.toggle(side, chosen);
      if (chosen) tag.textContent = version + (image.dataset.psnr ? ` ${image.dataset.psnr} dB` : "");
    }
  }
}
for (const select of document.querySelectorAll("select[data-side]")) {
  const show = () => showVersion(select.dataset.side, select.value);
  select.addEventListener("change", show);
  show();
}
for (const range of document.querySelectorAll(".compare input")) {
  const move = () => range.parentElement.style.setProperty("--at", `${range.value}%`);
  range.addEventListener("input", move);
  move(); // browsers restore the position when the page is reloaded
}

// Results by image: sort by a column, choose the protocol, filter by name.
const table = document.getElementById("image-table");
if (table) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.value;
  function sortBy(column, ascending) {
    const sign = ascending ? 1 : -1;
    const compare = (a, b) => key(a, column) === undefined
      ? a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true })
      : key(a, column) - key(b, column);
    for (const body of table.tBodies) body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
  }
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(column, ascending);
    });
  });
  const protocol = document.getElementById("protocol-choice");
  const filter = document.getElementById("image-filter");
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  const refresh = () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const body of table.tBodies) {
      body.hidden = body.dataset.protocol !== protocol.value;
      for (const row of body.rows) {
        const name = `${row.cells[0].textContent}/${row.cells[1].textContent}`.toLowerCase();
        row.hidden = !name.includes(wanted);
      }
    }
  };
  protocol.addEventListener("change", refresh);
  filter.addEventListener("input", refresh);
  refresh();
}
