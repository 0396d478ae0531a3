"""The control plane on its own port: review inbox, status, metrics, and the API behind them."""
