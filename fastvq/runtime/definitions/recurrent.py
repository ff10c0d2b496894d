"""Layers with a state: LSTM and GRU."""
