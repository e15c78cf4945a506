"""Speech commands for other programs: Wyoming (Home Assistant), a web page, WebSocket and MQTT."""
