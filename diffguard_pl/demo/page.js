// Magnify small images without smoothing (see img.dg-small), and give the examples alternative text.
document.addEventListener("load", ({target}) => {
  if (target.tagName !== "IMG") return;
  target.classList.toggle("dg-small", target.naturalWidth < 128);
  if (target.closest("#dg-examples")) target.alt = decodeURIComponent(target.src.split("/").pop()).replace(".png", "");
}, true);
