// Shows this server's own document, by ReDoc. Its fonts are the reader's: the page loads none.
const sans = "system-ui, sans-serif";
Redoc.init(
  "/openapi.json",
  {
    hideDownloadButton: false,
    theme: { typography: { fontFamily: sans, headings: { fontFamily: sans } } },
  },
  document.getElementById("page"),
);
