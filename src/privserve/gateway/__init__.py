"""The gateway: plain inference requests in, private queries out; see docs/gateway.md."""
