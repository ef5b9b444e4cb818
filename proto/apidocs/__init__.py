"""The documentation of the API, made from the contract: OpenAPI for REST, Markdown for gRPC."""

from apidocs.contract import Contract
from apidocs.examples import Examples
from apidocs.openapi import openapi
from apidocs.reference import reference

__all__ = ["Contract", "Examples", "openapi", "reference"]
