def document_text() -> str:
    return "{}"
