import sys

from isentrope.budget import main

sys.exit(main())
