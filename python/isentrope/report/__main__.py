import sys

from isentrope.report import main

sys.exit(main())
