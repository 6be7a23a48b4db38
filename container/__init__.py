"""berth: one server, many models, one device. Start reading at docs/00-overview.md."""

__version__ = "0.1.0"
