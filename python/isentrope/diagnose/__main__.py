import sys

from isentrope.diagnose import main

sys.exit(main())
