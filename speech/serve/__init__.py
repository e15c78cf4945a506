"""Speech commands for other programs: Wyoming (Home Assistant), a page in the browser, WebSocket and MQTT."""
