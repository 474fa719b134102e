from .chat import Chat as Chat
from .format import ChatFormat as ChatFormat
