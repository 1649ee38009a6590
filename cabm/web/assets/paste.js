// Pasted images, and images dropped anywhere on the page, go to the page's file input as they are.
(() => {
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  async function take(files) {
    const image = [...(files ?? [])].find((file) => file.type.startsWith("image/") || !file.type);
    if (!image) return false;
    const area = document.querySelector("#image");
    area.querySelector("button[aria-label='Clear'], button[aria-label='Remove this file']")?.click();
    for (let tries = 0; tries < 40; tries++) {
      const input = area.querySelector("input[type=file]");
      if (input) {
        const carrier = new DataTransfer();
        carrier.items.add(image);
        input.files = carrier.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        return true;
      }
      await wait(50);
    }
    return false;
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) {
      event.preventDefault();
      take(event.clipboardData.files);
    }
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (event.target.closest?.("#image")) return; // Gradio's own
    event.preventDefault();
    take(event.dataTransfer?.files);
  });
})();
