import sys

from isentrope.doctor import main

sys.exit(main())
