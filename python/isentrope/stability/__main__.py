import sys

from isentrope.stability import main

sys.exit(main())
