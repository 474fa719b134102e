from .cot_length import attention_by_length as attention_by_length
from .direct_attribution import self_repair as self_repair
from .interchange import interchange_sweep as interchange_sweep
