import sys

from isentrope.compare import main

sys.exit(main())
