from .arm_comparison import compare_arms as compare_arms
from .counterfactuals import given_pairs as given_pairs
from .counterfactuals import teacher_forced_pairs as teacher_forced_pairs
from .series_measurement import series_behavior as series_behavior
from .series_measurement import series_maths as series_maths
from .shift import activation_shift as activation_shift
from .shift_prediction import predict_shift as predict_shift
