"""A client that waits for the server to speak first: it sends one mail and says `ok`."""

import smtplib
import sys

with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=10) as mail:
    mail.sendmail("a@example.com", ["b@example.com"], "Subject: there\n\nand back\n")
print("ok")
