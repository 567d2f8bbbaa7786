import sys

from isentrope.trackers import main

sys.exit(main())
