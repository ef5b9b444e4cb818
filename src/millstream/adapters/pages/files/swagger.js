// Shows this server's own document, by Swagger UI.
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: 0,
  filter: true,
  persistAuthorization: false,
  // Else the document would be sent to a validator elsewhere.
  validatorUrl: null,
});
