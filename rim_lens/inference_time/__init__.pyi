from .cot_length import attention_by_length as attention_by_length
from .direct_attribution import self_repair as self_repair
from .held_out_attention import on_other_chats as on_other_chats
from .interchange import interchange_sweep as interchange_sweep
from .restore import restore_refusal as restore_refusal
from .trace import trace_refusal as trace_refusal
