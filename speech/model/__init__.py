"""The network: MFCC, LSTM from its equations, heads, export.  Needs torch."""
