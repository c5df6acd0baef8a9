"""python -m diptych.fluid [OPTIONS] SCRIPT.py [ARGS]"""

import sys

from diptych.fluid.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
