"""The bundled store: a sans-IO engine over the segment and an asyncio shell."""
