"""Routes: from one architecture to another by exact edits, or the reasons why there are none."""

from surgery.route.journey import Journey as Journey
from surgery.route.journey import check as check
from surgery.route.journey import migrate as migrate
from surgery.route.journey import survey as survey
from surgery.route.target import file_of as file_of
