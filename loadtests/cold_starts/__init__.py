"""What warm pools bring: days of serverless-like traffic, simulated, and first requests of real sessions, measured."""
