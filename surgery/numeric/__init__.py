"""Run an ONNX graph in numpy, in any precision: float32, float64, or complex128 as value and derivative.

onnxruntime's CPU has no double Conv, ConvTranspose, LSTM or GRU, so float64 proofs are evaluated here.
A complex128 run is a complex-step derivative (Squire and Trapp, "Using Complex Variables to Estimate
Derivatives of Real Functions", 1998): the imaginary part is an infinitesimal tangent, see `dual.py`.
"""

from surgery.numeric.call import Unsupported
from surgery.numeric.evaluate import compute, run
from surgery.numeric.kernels import supported

__all__ = ["Unsupported", "compute", "run", "supported"]
