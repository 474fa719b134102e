from .lineage import lineages as lineages
from .lineage import series as series
from .organism import Organism as Organism
from .organism import load as load
from .organism import names as names
