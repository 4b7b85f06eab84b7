"""What `nodectl` and `meshctl` take and print, as far as it is the same for both and needs no I/O.

`table` renders answers, `units` and `columns` what is in them; `watch` renders successive answers; `failure` says what
went wrong; `options` declares the options that commands share. Asking, waiting and writing is left to the two.
"""
