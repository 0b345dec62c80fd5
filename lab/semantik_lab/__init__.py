"""The lab: booted Debian hosts on one machine, on a bridge of their own."""
