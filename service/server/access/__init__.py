"""Who may ask, in the processes of a server: control.py; reloading.py has files taken up when they change."""
