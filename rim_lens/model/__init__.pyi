from .taps import Tap as Tap
