import sys

from isentrope.pipeline import main

sys.exit(main())
